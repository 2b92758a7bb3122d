"""Decoding one text with the depths of one model: fixed, by confidence, or as draft and verifier.

Greedy, one text at a time; the families are `FAMILIES`.
"""

from lightning_kd.decoding.calibration import Calibration, calibrate_thresholds
from lightning_kd.decoding.dynamic import DynamicDecoder, dynamic_exit
from lightning_kd.decoding.generation import Generation
from lightning_kd.decoding.greedy import greedy
from lightning_kd.decoding.probe import Probe, probe_exits
from lightning_kd.decoding.session import FAMILIES, Session
from lightning_kd.decoding.speculative import self_speculative
from lightning_kd.decoding.tuning import Costs, Speculation, measure_costs, tune_speculation

__all__ = [
    "FAMILIES",
    "Calibration",
    "Costs",
    "DynamicDecoder",
    "Generation",
    "Probe",
    "Session",
    "Speculation",
    "calibrate_thresholds",
    "dynamic_exit",
    "greedy",
    "measure_costs",
    "probe_exits",
    "self_speculative",
    "tune_speculation",
]
