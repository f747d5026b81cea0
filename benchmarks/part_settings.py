"""The rows of benchmarks.part_use: config keys on top of configs/real_birds.yaml."""

from typing import Any

SCALE, GUMBEL, PARTS = "model.parts.logit_scale", "model.parts.gumbel", "model.parts.num_parts"
PROTOTYPES = "optim.prototype_lr_mult"
WEIGHT = "loss.weights."

RECIPE: dict[str, Any] = {PROTOTYPES: 250.0, f"{WEIGHT}presence": 3.0}
"""All four parts are used, and the mask is kept (docs/parts.md)."""

PUBLISHED: dict[str, Any] = {
    SCALE: 1.0,
    GUMBEL: True,
    **{f"{WEIGHT}{term}": 1.0 for term in ("presence", "total_variation", "entropy", "equivariance", "orthogonality")},
    f"{WEIGHT}enforced_presence": 2.0,
    f"{WEIGHT}border": 0.0,
    "loss.equivariance.images": 0,
    "optim.lr": 2.828e-6,
    "optim.head_lr_mult": 1e4,
    "optim.modulation_lr_mult": 1e4,
    PROTOTYPES: 1e3,
    "optim.schedule_unit": "epoch",
    "optim.warmup_epochs": 0.0,
    "optim.stage_1_epochs": 0,
    "train.epochs": 90,
    "optim.weight_decay": 8.66e-4,
}
"""configs/waterbirds.yaml, apart from K, batches of 32, augmentation, and views padded with reflection."""

SETTINGS: dict[str, dict[str, Any]] = {
    "current": {},
    "recipe": RECIPE,
    # The recipe's parts, alone.
    "prototype rate x 3.75": {PROTOTYPES: 250.0},
    "prototype rate x 10": {PROTOTYPES: 667.0},
    "presence 3": {f"{WEIGHT}presence": 3.0},
    "presence 5": {f"{WEIGHT}presence": 5.0},
    "300 steps": {"steps": 300},
    # The recipe, more or less of it.
    "prototype rate x 3, presence 2": {PROTOTYPES: 200.0, f"{WEIGHT}presence": 2.0},
    "prototype rate x 4.5, presence 3": {PROTOTYPES: 300.0, f"{WEIGHT}presence": 3.0},
    "recipe, presence 5": {**RECIPE, f"{WEIGHT}presence": 5.0},
    "recipe, border 2": {**RECIPE, f"{WEIGHT}border": 2.0},
    "recipe, 150 steps": {**RECIPE, "steps": 150},
    "recipe, Gumbel noise": {**RECIPE, GUMBEL: True},
    # Scale of the logits, noise, and the batch over which presence takes its maximum.
    "logit scale 0.1": {SCALE: 0.1},
    "logit scale 0.3": {SCALE: 0.3},
    "logit scale 1": {SCALE: 1.0},
    "Gumbel noise": {GUMBEL: True},
    "Gumbel noise, temperature 0.5": {GUMBEL: True, "model.parts.temperature": 0.5},
    "batches of 16": {"data.batch_size": 16},
    "batches of 128": {"data.batch_size": 128},
    # Other terms.
    "presence soft_tanh": {"loss.presence": "soft_tanh"},
    "entropy 0": {f"{WEIGHT}entropy": 0.0},
    "total variation 0": {f"{WEIGHT}total_variation": 0.0},
    "border 0": {f"{WEIGHT}border": 0.0},
    "equivariance 0": {f"{WEIGHT}equivariance": 0.0},
    "equivariance 4": {f"{WEIGHT}equivariance": 4.0},
    "orthogonality 5": {f"{WEIGHT}orthogonality": 5.0},
    "enforced presence 5": {f"{WEIGHT}enforced_presence": 5.0},
    "modulation rate 0": {"optim.modulation_lr_mult": 0.0},
    "concentration 50": {f"{WEIGHT}concentration": 50.0},
    # As published.
    "published": PUBLISHED,
    "published, 300 steps": {**PUBLISHED, "steps": 300},
    "published, logit scale 0.1": {**PUBLISHED, SCALE: 0.1},
    "published, logit scale 0.0333": {**PUBLISHED, SCALE: 0.0333},
    "published, no Gumbel noise": {**PUBLISHED, GUMBEL: False},
    # 8 parts. The presence term is a mean over the parts.
    "K = 8": {PARTS: 8},
    "K = 8, recipe": {**RECIPE, PARTS: 8},
    "K = 8, recipe, presence 6": {**RECIPE, PARTS: 8, f"{WEIGHT}presence": 6.0},
    "K = 8, published": {**PUBLISHED, PARTS: 8},
}
