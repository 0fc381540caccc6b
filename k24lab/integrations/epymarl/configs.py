"""Algorithm configurations for a checkout: settings of its own algorithms with K-2:4's agent and learner."""

import dataclasses
from itertools import product
from typing import Literal

from k24lab.core.config import MaskConfig
from k24lab.lab.config import build_config

Flavour = Literal["epymarl", "pymarl2"]

METHODS = {
    "k24": "learnable 2:4 masks, score |W| * EMA(|x|) * sigmoid(alpha)",
    "k24-alpha": "learnable 2:4 masks, score sigmoid(alpha) alone",
    "random24": "fixed random 2:4 masks: what learning them is to be compared with",
}
MIXERS = ("qmix", "vdn")
# What `k24_args` may hold; everything else is a setting of the checkout's own.
TYPE_KEYS = ("n_unit_types", "unit_type_start")
MASK_KEYS = tuple(field.name for field in dataclasses.fields(MaskConfig) if field.name != "mask_per")
KEYS = ("method", "alpha_lr_factor", "grad_clip", "lr_final", "td_loss", *MASK_KEYS, *TYPE_KEYS)

EXPLORATION = """\
action_selector: "epsilon_greedy"
epsilon_start: 1.0
epsilon_finish: 0.05
epsilon_anneal_time: {anneal}
evaluation_epsilon: 0.0
"""

# Numbers as in the checkout's own qmix.yaml, so that a comparison with it is one of agents; but recurrent, without ids.
LEARNING = {
    "epymarl": """\
runner: "episode"
buffer_size: 5000
target_update_interval_or_tau: 200 # updates; up to 1: the share of a soft update at each

learner: "k24_learner" # 1-step double Q; k24_nq_learner: TD(lambda)
td_lambda: 0.6 # of k24_nq_learner
agent_output_type: "q"
double_q: True
use_rnn: True
standardise_returns: False
standardise_rewards: True
obs_last_action: False
obs_individual_obs: False
mixing_embed_dim: 32
hypernet_layers: 2
hypernet_embed: 64
""",
    "pymarl2": """\
runner: "parallel"
batch_size_run: 8
buffer_size: 5000
batch_size: 128
t_max: 10050000
target_update_interval: 200 # episodes

learner: "k24_nq_learner" # TD(lambda) double Q; k24_learner: one step
td_lambda: 0.6
q_lambda: False
optimizer: "adam"
lr: 0.001
agent_output_type: "q"
double_q: True
mixing_embed_dim: 32
hypernet_embed: 64
""",
}

TYPES = """\
  n_unit_types: 3 # SMACv2 and SMAC's mixed maps: the last three numbers of an observation are the type's one-hot
  unit_type_start: -3 # where the one-hot begins; negative: from the end
"""


def config_files(flavour: Flavour) -> dict[str, str]:
    """The text of every file, by name: `k24_qmix.yaml` and so on."""
    files = {}
    for method, per_type, mixer in product(METHODS, (False, True), MIXERS):
        name = "_".join([method.replace("-", "_"), *(["type"] if per_type else []), mixer])
        files[f"{name}.yaml"] = _config(flavour, name, method, per_type, mixer)
    return files


def _config(flavour: Flavour, name: str, method: str, per_type: bool, mixer: str) -> str:
    """The text of one file."""
    owner = "unit type" if per_type else "agent"
    return (
        f"# {mixer.upper()} on one shared network, seen by every {owner} through its own mask: {METHODS[method]}.\n\n"
        + EXPLORATION.format(anneal=50000 if flavour == "epymarl" else 100000)
        + "\n"
        + LEARNING[flavour]
        + f"""mixer: "{mixer}"

agent: "{"k24_type" if per_type else "k24"}"
mac: "k24_mac"
obs_agent_id: False # masks tell {owner}s apart
# null: the method's default, which stands behind it; `k24lab train --help` says what each is. All keys are listed, as
# only what is listed can be changed on the command line: with k24_args.logit_scale=3.0
k24_args:
  method: "{method}" # also: fups (one dense network), nops (a dense network each), magnitude24, kaleidoscope, multih
  lr_final: null # lr; reached linearly at t_max
  td_loss: null # mse; or huber
"""
        + _defaults(method)
        + (TYPES if per_type else "")
        + f'\nname: "{name}"\n'
    )


def _defaults(method: str) -> str:
    """A line for every setting of the masks."""
    config = build_config({"method": method})
    return "".join(f"  {key}: null # {getattr(config, key)}\n" for key in ("alpha_lr_factor", "grad_clip", *MASK_KEYS))
