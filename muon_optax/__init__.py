"""Muon for JAX and Optax: composable parts, one factory, the right parameters by default."""

from muon_optax import diagnostics, recipes
from muon_optax._layouts.assigning.assign import assign_layouts, label_params
from muon_optax._layouts.assigning.messages import MuonWarning
from muon_optax._layouts.assigning.per_head import per_head
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.assigning.rules import default_layouts
from muon_optax._layouts.assigning.split_fused import split_fused
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.saved import layouts_from_json, layouts_to_json
from muon_optax._mesh.plan import Plan
from muon_optax._muon import muon
from muon_optax._orthogonalizers.coefficients import (
    CUBIC,
    DEEPSEEK_V4,
    KELLER,
    YOU_JIACHENG,
    Coefficients,
    coefficient_range,
    polar_express,
)
from muon_optax._orthogonalizers.newton_schulz import newton_schulz
from muon_optax._orthogonalizers.orthogonalizer import Orthogonalizer
from muon_optax._orthogonalizers.polar_factor import polar_factor
from muon_optax._plan import plan
from muon_optax._state.carry_over import carry_over
from muon_optax._state.from_others import from_optax_contrib_muon, from_torch_muon
from muon_optax._state.report import CarryReport
from muon_optax._state.shardings import init_sharded, state_shardings
from muon_optax._summary import Row, Summary, summarize
from muon_optax._transforms.by_path.settings import Settings
from muon_optax._transforms.decay_mask import decay_mask
from muon_optax._transforms.family.adamuon import ScaleByAdaMuonState, scale_by_adamuon
from muon_optax._transforms.family.block_periodic import BlockPeriodicState, orthogonalize_block_periodic
from muon_optax._transforms.family.cautious_decay import add_cautious_decayed_weights
from muon_optax._transforms.family.clip_qk import clip_qk
from muon_optax._transforms.family.hyperball import ScaleByHyperballState, scale_by_hyperball
from muon_optax._transforms.family.normuon import ScaleByNorMuonState, scale_by_normuon
from muon_optax._transforms.hold_idle import hold_idle
from muon_optax._transforms.hold_idle_matrices import hold_idle_matrices
from muon_optax._transforms.momenta.momentum import Momentum
from muon_optax._transforms.momenta.nesterov_ema import nesterov_ema
from muon_optax._transforms.momenta.offload_to_host import offload_to_host
from muon_optax._transforms.momenta.quantized_trace import QuantizedTraceState, quantized_trace
from muon_optax._transforms.momenta.scheduled_trace import ScheduledTraceState, scheduled_trace
from muon_optax._transforms.orthogonalize import orthogonalize, orthogonalize_via_newton_schulz
from muon_optax._transforms.partition import partition_by_layout
from muon_optax._transforms.scale_by_shape import scale_by_shape
from muon_optax._transforms.scales import Scale
from muon_optax._version import __version__ as __version__

__all__ = [
    "CUBIC",
    "CarryReport",
    "DEEPSEEK_V4",
    "KELLER",
    "YOU_JIACHENG",
    "BlockPeriodicState",
    "Coefficients",
    "Layout",
    "Layouts",
    "Momentum",
    "MuonWarning",
    "Orthogonalizer",
    "Plan",
    "QuantizedTraceState",
    "Row",
    "Scale",
    "ScaleByAdaMuonState",
    "ScaleByHyperballState",
    "ScaleByNorMuonState",
    "ScheduledTraceState",
    "Settings",
    "Summary",
    "add_cautious_decayed_weights",
    "assign_layouts",
    "carry_over",
    "clip_qk",
    "coefficient_range",
    "decay_mask",
    "default_layouts",
    "diagnostics",
    "from_optax_contrib_muon",
    "from_torch_muon",
    "hold_idle",
    "hold_idle_matrices",
    "init_sharded",
    "label_params",
    "layouts_from_json",
    "layouts_to_json",
    "muon",
    "nesterov_ema",
    "newton_schulz",
    "offload_to_host",
    "orthogonalize",
    "orthogonalize_block_periodic",
    "orthogonalize_via_newton_schulz",
    "partition_by_layout",
    "per_head",
    "plan",
    "polar_express",
    "polar_factor",
    "quantized_trace",
    "recipes",
    "scale_by_adamuon",
    "scale_by_hyperball",
    "scale_by_normuon",
    "scale_by_shape",
    "scheduled_trace",
    "split_fused",
    "state_shardings",
    "summarize",
]
