"""Algorithm configurations for a checkout: settings of its own algorithms with K-2:4's agent and learner."""

import dataclasses
from itertools import product
from typing import Literal

from jinja2 import Environment, PackageLoader

from k24lab.core.config import MaskConfig
from k24lab.lab.config import build_config

Flavour = Literal["epymarl", "pymarl2"]

METHODS = {
    "k24": "learnable 2:4 masks, score |W| * EMA(|x|) * sigmoid(alpha)",
    "k24-alpha": "learnable 2:4 masks, score sigmoid(alpha) alone",
    "random24": "fixed random 2:4 masks: what learning them is to be compared with",
}
# What `k24_args` may hold; everything else is a setting of the checkout's own.
TYPE_KEYS = ("n_unit_types", "unit_type_start")
MASK_KEYS = tuple(field.name for field in dataclasses.fields(MaskConfig) if field.name != "mask_per")
KEYS = ("method", "alpha_lr_factor", "grad_clip", "lr_final", "td_loss", *MASK_KEYS, *TYPE_KEYS)


def config_files(flavour: Flavour) -> dict[str, str]:
    """The text of every file, by name: `k24_qmix.yaml` and so on."""
    environment = Environment(loader=PackageLoader("k24lab.integrations.epymarl", ""), keep_trailing_newline=True)
    template, files = environment.get_template("config.yaml.jinja"), {}
    for (method, about), per_type, mixer in product(METHODS.items(), (False, True), ("qmix", "vdn")):
        name = "_".join([method.replace("-", "_"), *(["type"] if per_type else []), mixer])
        config = build_config({"method": method})
        defaults = {key: getattr(config, key) for key in ("alpha_lr_factor", "grad_clip", *MASK_KEYS)}
        about_it = {"method": method, "about": about, "mixer": mixer, "name": name, "defaults": defaults}
        owner = {"per_type": per_type, "owner": "unit type" if per_type else "agent"}
        files[f"{name}.yaml"] = template.render(flavour=flavour, **about_it, **owner)
    return files
