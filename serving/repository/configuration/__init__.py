"""``config.pbtxt``, typed: what a model's configuration says, what it may say, and where in the text it says it.

========================  ================================================================================================
module                    holds
========================  ================================================================================================
``schema``                Triton's protobuf schema of ``ModelConfig``
``scanner``               the text format with every position
``text``                  ``ConfigText``: a text, its message, positions, edits that leave the rest alone
``edit``                  the smallest edit that makes a text say something else
========================  ================================================================================================
"""

from __future__ import annotations

from convoy.serving.repository.configuration.text import ConfigText as ConfigText
