"""``config.pbtxt``, typed: what a model's configuration says, what it may say, and where in the text it says it.

========================  ================================================================================================
module                    holds
========================  ================================================================================================
``schema``                Triton's protobuf schema of ``ModelConfig``
``scanner``               the text format with every position
``text``                  ``ConfigText``: a text, its message, positions, edits that leave the rest alone
``edit``                  the smallest edit that makes a text say something else
``part``                  what every typed part has: the way from and to its message, and its rules
``tensor``, ``batching``  inputs and outputs; how requests become batches
``instance``              where a model runs
``optimization``          what makes it faster
``warmup``, ``version``   what runs before it is ready; which versions are served
``model_config``          ``ModelConfig``: the whole, and the rules between its parts
========================  ================================================================================================
"""

from __future__ import annotations

from convoy.serving.repository.configuration.batching import ModelDynamicBatching as ModelDynamicBatching
from convoy.serving.repository.configuration.batching import ModelQueuePolicy as ModelQueuePolicy
from convoy.serving.repository.configuration.instance import ModelInstanceGroup as ModelInstanceGroup
from convoy.serving.repository.configuration.model_config import ModelConfig as ModelConfig
from convoy.serving.repository.configuration.model_config import ModelParameter as ModelParameter
from convoy.serving.repository.configuration.model_config import ModelResponseCache as ModelResponseCache
from convoy.serving.repository.configuration.optimization import ModelOptimizationPolicy as ModelOptimizationPolicy
from convoy.serving.repository.configuration.tensor import ModelInput as ModelInput
from convoy.serving.repository.configuration.tensor import ModelOutput as ModelOutput
from convoy.serving.repository.configuration.text import ConfigText as ConfigText
from convoy.serving.repository.configuration.version import ModelVersionPolicy as ModelVersionPolicy
from convoy.serving.repository.configuration.warmup import ModelWarmup as ModelWarmup
