"""Flags of iFAM, PDiscoFormer and timm's train.py, and what they are here: the tables of docs/coming-from.md.

Names have underscores; timm's hyphens are read as such. A flag of several projects has one answer that holds for all.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from common.errors import UserError

_ANSWERS: Mapping[str, str] = {
    # data
    "--data.name": "dataset",
    "--data.root": "data_path data_dir",
    "--data.image_folder; of siim_acr --data.variant": "image_sub_path image_sub_path_train image_sub_path_test",
    "--data.mask_folder": "mask_sub_path",
    "not needed: annotations are found below --data.root": "anno_path_train anno_path_test",
    "not needed: --data.index reads the list of PartImageNet OOD": "anno_path output_dir",
    "--data.index": "train_test_split_file",
    "not here: read your own tables with --data.name folder --data.index": "metadata_path species_id_to_name_file",
    "not here: splits have fixed names; --data.val_fraction is held out for validation": "train_split val_split",
    "not here: a split is used whole; evaluate.py --limit measures a sample": "train_num_samples val_num_samples",
    "not here: classes are sorted folder names; --data.class_names names them": "class_map",
    "not here: data sets are files on disk": "dataset_download dataset_trust_remote_code input_key target_key",
    "not here: images have 3 channels": "in_chans input_img_mode",
    "--data.image_size": "image_size img_size input_size",
    "--data.mean and --data.std": "imagenet_default_mean_and_std",
    "--data.mean": "mean",
    "--data.std": "std",
    "--data.interpolation": "interpolation",
    "--data.crop": "crop_pct",
    "--data.evaluation center_crop": "center_crop",
    "--data.global_batch (all processes) or --data.batch_size (of one)": "batch_size b",
    "--data.eval_batch_size": "validation_batch_size vb",
    "--data.workers": "num_workers workers j",
    "not needed: the loader does what suits the device": "pin_mem no_prefetcher worker_seeding use_multi_epochs_loader",
    # augmentation
    "--data.augmentation": "augmentations_to_use",
    "--data.timm.auto_augment, with --data.augmentation timm": "aa",
    "--data.augmentation none": "no_aug",
    "the same name below data.timm, with --data.augmentation timm": "hflip vflip scale ratio train_crop_mode "
    "color_jitter color_jitter_prob grayscale_prob gaussian_blur_prob",
    "--data.timm.interpolation, with --data.augmentation timm": "train_interpolation",
    "--data.timm.re_prob, with --data.augmentation timm": "reprob",
    "--data.timm.re_mode": "remode",
    "--data.timm.re_count": "recount",
    "not here: one augmented view of each image": "aug_repeats aug_splits resplit jsd_loss",
    "not here: every image once per epoch": "use_class_balanced_sampling num_samples_per_class",
    "--loss.classification.mixup": "mixup",
    "--loss.classification.cutmix": "cutmix",
    "--loss.classification.mixup and --loss.classification.cutmix": "turn_on_mixup_or_cutmix",
    "--loss.classification.mixup_prob": "mixup_prob",
    "--loss.classification.mixup_switch_prob": "mixup_switch_prob",
    "--loss.classification.mixup_mode": "mixup_mode",
    "--loss.classification.cutmix_minmax": "cutmix_minmax",
    "not here: mixing stays on to the last epoch": "mixup_off_epoch",
    # model
    "--model.backbone": "model_arch",
    "--model.backbone; --model.name is what is built on it": "model",
    "--model.weights hub (default), or none": "pretrained pretrained_start_weights",
    "--model.weights FILE": "pretrained_path",
    "--model.weights FILE (backbone) or --model.init_from RUN (all weights)": "initial_checkpoint",
    "not needed: --model.weights FILE reads Hugging Face's DINOv2": "use_hf_transformers",
    "--model.name cnn with timm's name of the weights, such as --model.backbone resnet101.tv_in1k":
    "use_torchvision_resnet_model",
    "not here: parts are found on ViTs only": "output_stride",
    "--model.parts.num_parts": "num_parts",
    "--model.parts.gumbel true (default)": "gumbel_softmax",
    "not here: part maps stay soft": "gumbel_softmax_hard",
    "--model.parts.temperature": "softmax_temperature gumbel_softmax_temperature",
    "--model.parts.part_dropout": "part_dropout",
    "--model.parts.mask_dropout": "part_dropout_stage_2",
    "--model.parts.modulation": "modulation_type",
    "--model.mask_kind soft": "use_soft_masks",
    "--model.stage_1_drop_path": "drop_path_stage_1",
    "--model.drop_path": "drop_path_stage_2",
    "--model.drop_path; of pdiscoformer --model.stage_1_drop_path": "drop_path",
    "--model.pooling": "gp",
    "not here: the classifier is linear": "classifier_type",
    "not here: no Gaussian noise on part maps": "noise_variance",
    "not needed: the data set has it": "num_classes",
    "not here: --model.drop_path is the only dropout of a backbone": "drop drop_connect drop_block",
    "not here: networks are as timm builds them": "model_kwargs head_init_scale head_init_bias fast_norm "
    "bn_momentum bn_eps sync_bn dist_bn split_bn naflex_loader",
    "not here: a smaller --data.max_batch_per_device saves memory": "grad_checkpointing",
    "--train.compile true": "torchcompile",
    "not here: --train.compile true is the only way to compile": "torchcompile_mode torchscript fuser channels_last",
    # optimiser and schedule
    "--optim.name": "optimizer_type opt",
    "--optim.lr": "lr",
    "--optim.scale_lr, for the lr of --optim.lr_batch images": "lr_base lr_base_size lr_base_scale",
    "--optim.eps": "opt_eps",
    "--optim.betas": "opt_betas betas1 betas2",
    "--optim.betas: the first is the momentum of sgd": "momentum",
    "not here: --optim.name with --optim.eps and --optim.betas": "opt_kwargs dampening trust_coeff "
    "always_adapt turn_off_grad_averaging max_grad_norm",
    "--optim.weight_decay; as given with --optim.normalise_weight_decay false": "weight_decay",
    "--optim.clip": "grad_norm_clip clip_grad",
    "not here: --optim.clip limits the global norm": "clip_mode",
    "--optim.head_lr_mult": "scratch_lr_factor",
    "--optim.modulation_lr_mult": "modulation_lr_factor",
    "--optim.prototype_lr_mult": "finer_lr_factor",
    "--optim.stage_2_lr_mult": "stage_two_lr_factor",
    "not here: rates differ by group (--optim.head_lr_mult, ...), not by layer": "layer_decay layer_decay_min_scale "
    "layer_decay_no_opt_scale",
    "--optim.freeze_stage_1 true (default); of a plain ViT --optim.freeze_stage_2": "freeze_backbone",
    "--optim.freeze_stage_1_tokens true": "freeze_params freeze_params_stage_1",
    "--optim.freeze_stage_2 true": "freeze_second_stage",
    "--optim.freeze_stage_2_tokens true": "freeze_params_stage_2",
    "--optim.schedule": "scheduler_type sched",
    "--optim.schedule_unit step": "sched_on_updates",
    "--optim.step_decay": "scheduler_gamma decay_rate",
    "--optim.step_epochs": "scheduler_step_size decay_epochs",
    "--optim.warmup_epochs": "warmup_epochs scheduler_warmup_epochs",
    "--optim.warmup_lr": "warmup_lr",
    "--optim.restarts, one less; the cycles share --train.epochs": "lr_cycle_limit cosine_cycle_limit",
    "--optim.restart_decay": "lr_cycle_decay",
    "not here: a warm-up does not shift the schedule": "warmup_prefix",
    "--optim.min_lr_ratio, a fraction of the first rate": "min_lr",
    "not here: cycles of --optim.restarts are equally long": "lr_cycle_mul scheduler_restart_factor",
    "not here: --optim.schedule has no noise or other steps": "lr_noise lr_noise_pct lr_noise_std lr_k_decay "
    "decay_milestones cooldown_epochs patience_epochs",
    "--optim.grad_accum_steps, or --data.global_batch for all": "gradient_accumulation_steps grad_accum_steps",
    # losses
    "--loss.classification.label_smoothing": "smoothing",
    "--loss.classification.kind bce": "bce_loss",
    "--loss.classification.bce_sum": "bce_sum",
    "--loss.classification.bce_target_threshold": "bce_target_thresh",
    "--loss.classification.bce_pos_weight": "bce_pos_weight",
    "--loss.classification.kind imbalanced_topk": "use_imbalanced_noised_topk",
    "--loss.classification.topk": "topk_k",
    "--loss.classification.topk_epsilon": "topk_epsilon",
    "--loss.classification.topk_max_margin": "max_m",
    "not here: scale 1 and pytopk's number of samples": "topk_scale topk_n_sample",
    "--loss.weights.stage_1; of a two-stage model also --loss.weights.stage_2": "classification_loss",
    "--loss.weights.equivariance": "equivariance_loss",
    "--loss.weights.orthogonality": "orthogonality_loss_landmarks",
    "--loss.weights.total_variation": "total_variation_loss",
    "--loss.weights.concentration": "concentration_loss",
    "--loss.weights.enforced_presence": "enforced_presence_loss",
    "--loss.enforced_presence": "enforced_presence_loss_type",
    "--loss.weights.presence": "presence_loss",
    "--loss.presence": "presence_loss_type",
    "--loss.presence_beta": "presence_loss_beta",
    "--loss.weights.entropy": "pixel_wise_entropy_loss",
    "--loss.orthogonality parts (default), of the modulated vectors": "modulation_orth",
    "--loss.equivariance.max_angle": "degrees",
    "--loss.equivariance.max_shift": "translate_x",
    "--loss.equivariance.max_shift_y": "translate_y",
    "--loss.equivariance.scale, both limits": "scale_l scale_u",
    "--loss.equivariance.max_shear, x and y (published: always 0)": "shear_x shear_y",
    # run
    "--train.epochs": "epochs",
    "not here: --train.epochs counts passes over the images": "epoch_repeats",
    "not needed: --resume continues at the saved step": "start_epoch",
    "--train.seed": "seed",
    "--train.device": "device",
    "--train.precision bf16 or fp16": "amp amp_dtype use_amp",
    "not here: weights are fp32, --train.precision is PyTorch's autocast": "amp_impl model_dtype",
    "not needed: torchrun and srun set it": "local_rank",
    "not here: PyTorch's defaults": "no_ddp_bb synchronize_step device_modules",
    "--train.ema_decay": "model_ema model_ema_decay",
    "--train.ema_warmup true (default); theirs is off by default": "model_ema_warmup",
    "not here: the average is on the device of the model": "model_ema_force_cpu",
    "--out": "snapshot_dir snapshot_path output experiment",
    "commands.part_thresholds --out": "save_path",
    "--resume with the --out of the run": "resume_training",
    "not here: --resume restores everything, --model.init_from RUN the weights alone": "no_resume_opt",
    "--train.keep_every for checkpoints, --train.sheet_every for part maps": "save_every_n_epochs",
    "--train.sheet_every": "amap_saving_prob save_images",
    "--train.keep_every; best and last are always kept": "checkpoint_hist",
    "--train.save_every_steps": "recovery_interval",
    "not here: metrics are logged every epoch; --train.eval_every_steps adds validations": "log_interval",
    "--train.best_metric": "eval_metric",
    "not here: one view of each image in evaluation": "tta",
    "--wandb.mode online": "wandb log_wandb",
    "--wandb.mode": "wandb_mode",
    "--wandb.project": "wandb_project",
    "--wandb.entity": "wandb_entity",
    "--wandb.group": "group",
    "--wandb.job_type": "job_type",
    "slurm/seeds.sbatch": "array_training_job",
    "--wandb.tags": "wandb_tags",
    "not needed: --resume continues the same W&B run": "wandb_resume_id",
    # other scripts
    "evaluate.py --run": "eval_only model_path",
    "evaluate.py --run with --split and --metrics": "eval_mode",
    "evaluate.py --run with --thresholds": "part_logits_threshold_path",
    "evaluate.py --run with --leave-one-part-out --fixed-parts": "intervention_fixed_part_id",
    "prepare_siim_acr.py --pkl_file_path": "pkl_file_path",
    "prepare_siim_acr.py --root_dir": "root_dir",
}  # fmt: skip
PUBLISHED_FLAGS: Mapping[str, str] = {name: answer for answer, names in _ANSWERS.items() for name in names.split()}
"""Their flag -> ours, or why there is none."""
OUR_GROUPS = ("model", "wandb")
"""Theirs, and ours as a group of keys: `--wandb '{mode: offline}'`."""


def refuse_published_flags(arguments: Sequence[str]) -> None:
    """Raise UserError, on one line for all, for flags of the published code that are not ours."""
    if answers := list(dict.fromkeys(_answers(arguments))):
        raise UserError(f"{'; '.join(answers)} (docs/coming-from.md)")


def _answers(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments, "-"][1:], strict=True):
        flag, equals, value = argument.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        answer = PUBLISHED_FLAGS.get(name) if flag.startswith("-") else None
        value = value if equals or following.startswith("-") else following
        if answer is None or (name in OUR_GROUPS and re.search("[:{]", value)):
            continue
        yield f"{flag}: {'' if answer.startswith('not ') else 'here '}{answer}"
