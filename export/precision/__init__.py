"""Reduced precision: float16 and 8-bit files, gated by the accuracy that they cost."""

from __future__ import annotations

from convoy.export.precision.converted import Converted as Converted
from convoy.export.precision.emulation import emulate_float16 as emulate_float16
from convoy.export.precision.half import to_fp16 as to_fp16
from convoy.export.precision.integer import to_int8 as to_int8
from convoy.export.precision.interval import drop_upper_bound as drop_upper_bound
from convoy.export.precision.judgement import Decisions as Decisions
from convoy.export.precision.judgement import images_needed as images_needed
from convoy.export.precision.judgement import judge as judge
from convoy.export.precision.reduction import MAX_ACCURACY_DROP as MAX_ACCURACY_DROP
from convoy.export.precision.reduction import Reduced as Reduced
from convoy.export.precision.reduction import reduce_precision as reduce_precision
from convoy.export.precision.search import SearchResult as SearchResult
from convoy.export.precision.search import search_sensitive as search_sensitive
from convoy.export.precision.speed import compare_speed as compare_speed
from convoy.export.precision.speed import measure_speed as measure_speed
