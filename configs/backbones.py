"""A large pretrained backbone on your own prepared folder, by one of three ways.

    jaxcls probe --config=configs/backbones.py:dinov2_b_14 --config.data.name=photos
    python -m jaxcls.main --config=configs/backbones.py:dinov2_b_14,lora
    python -m jaxcls.main --config=configs/backbones.py:dinov2_b_14

They fit the head on features that are computed once; train low-rank parts and the head
(LoRA, Hu et al., arXiv:2106.09685); or train all of it with AdamW, the lower a layer the
slower, as BEiT (arXiv:2106.08254) and MAE (arXiv:2111.06377) do.

Backbones: DINOv2, with registers or not, DINOv3, CLIP, SigLIP, Swin, ConvNeXt V2.
Data: `jaxcls prepare --source=FOLDER --name=photos --val_fraction=0.2`.
Weights: timm's on Hugging Face's hub, each by the licence that its page states. Another
file of the same model goes into init.weights, and its pixels' mean into normalize.
Cost: 20 epochs of your images, or one pass for a probe; docs/tutorials/finetuning.md has
the memory and the time of a step.
Expected: not measured with the hub's weights; docs/tutorials/finetuning.md says what a
small tower with weights made here reaches.

Deviations:
- None: the recipe is this project's own.
"""

from ml_collections import ConfigDict

from jaxcls.config import base
from jaxcls.errors import lookup

HUB = {
    "dinov2_s_14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_b_14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_l_14": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_s_14_reg4": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_b_14_reg4": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2_l_14_reg4": "vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov3_s_16": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3_b_16": "vit_base_patch16_dinov3.lvd1689m",
    "clip_b_32": "vit_base_patch32_clip_224.laion2b",
    "clip_b_16": "vit_base_patch16_clip_224.laion2b",
    "clip_l_14": "vit_large_patch14_clip_224.laion2b",
    "siglip_b_16": "vit_base_patch16_siglip_224.webli",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_b": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "convnextv2_atto": "convnextv2_atto.fcmae_ft_in1k",
    "convnextv2_femto": "convnextv2_femto.fcmae_ft_in1k",
    "convnextv2_pico": "convnextv2_pico.fcmae_ft_in1k",
    "convnextv2_nano": "convnextv2_nano.fcmae_ft_in22k_in1k",
    "convnextv2_tiny": "convnextv2_tiny.fcmae_ft_in22k_in1k",
    "convnextv2_base": "convnextv2_base.fcmae_ft_in22k_in1k",
}


def get_config(arg: str = "dinov2_s_14") -> ConfigDict:
    """arg: a backbone of HUB; with ",lora" low-rank parts and the head train alone."""
    name, _, way = arg.partition(",")
    weights = lookup(HUB, name, "backbone")
    way = lookup({"all": "all", "lora": "lora"}, way or "all", "way to train")
    c = base()
    c.batch_size = 64
    c.length = "20 epochs"
    c.model.name = f"{name}(drop_path={0.1 if way == 'all' else 0.0})"
    c.init.weights = f"hf:timm/{weights}"
    c.init.head = "auto"
    c.data.name = "photos"
    c.data.eval = "val"
    # The filter, and for most the share that is cropped, are those of the weights.
    c.data.train_ops = (
        "decode | random_resized_crop(224, area=(0.35, 1.0), filter='bicubic')"
    )
    c.data.eval_ops = (
        "decode | resize_short(248, filter='bicubic', rounding='truncate')"
        " | center_crop(224)"
    )
    c.normalize = "weights"
    c.augment = "flip"
    c.optim.name = "adamw"
    c.optim.head_lr = 10.0
    c.optim.warmup = "10 percent"
    c.optim.clip_norm = 1.0
    c.loss.smoothing = 0.1
    if way == "lora":
        # A ConvNeXt has no attention.
        on = "mlp" if name.startswith("convnext") else "qkv|proj|mlp"
        c.optim.lora = f"rank=8, alpha=16, on='{on}'"
        c.optim.lr = 5e-4
        return c
    c.optim.lr = 1e-4
    c.optim.weight_decay = 0.05
    # In the lowest layer of a tower about 2 percent of the rate are left.
    c.optim.layer_decay = 0.85 if "_l_" in name else 0.75
    if name.startswith(("swin", "convnext")):
        c.optim.layer_decay = 0.9
    return c
