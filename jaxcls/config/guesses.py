"""What other trainers call our keys and flags: a wrong guess is answered with ours."""

import shlex

from jaxcls.config.knobs import KNOBS

# A row: the names that people try, = what to give here, with {} for the value; an example.
# What does not begin with -- is a config key.
_TABLE = """
epochs max_epochs num_epochs nb_epochs num_train_epochs n_epochs e = length="{} epochs"; 5
steps max_steps num_steps total_steps train_steps iterations = length="{} steps"; 1000
b bs batch train_batch_size per_device_train_batch_size mini_batch_size = batch_size={}; 64
eval_batch_size val_batch_size per_device_eval_batch_size = eval.batch_size={}; 256
learning_rate base_lr max_lr peak_lr blr = optim.lr={}; 0.001
min_lr final_lr lr_min = optim.schedule="cosine(end=0.01)";
lr_scheduler lr_scheduler_type sched scheduler lr_schedule = optim.schedule={}; cosine
warmup_epochs num_warmup_epochs lr_warmup_epochs = optim.warmup="{} epochs"; 5
warmup_steps num_warmup_steps = optim.warmup="{} steps"; 500
warmup_ratio = optim.warmup="10 percent";
opt optimizer = optim.name={}; adamw
momentum = optim.name="sgd(momentum={})"; 0.9
wd = optim.weight_decay={}; 0.05
clip_grad grad_clip max_grad_norm gradient_clip_val clip_grad_norm = optim.clip_norm={}; 1
accum_iter grad_accum_steps accumulate_grad_batches = optim.accumulate={}; 4
gradient_accumulation_steps = optim.accumulate={}; 4
lora lora_rank lora_r = optim.lora="rank={}, alpha=16, on='qkv|proj|mlp'"; 8
freeze_backbone freeze_base linear_probe = optim.freeze='^(?!head/)';
a arch architecture model backbone net model_name = model.name={}; resnet50
drop drop_rate dropout_rate = model.name="cnn(dropout={})"; 0.2
drop_path drop_path_rate = model.name="vit_s_16(drop_path={})"; 0.1
precision amp fp16 bf16 half mixed_precision = model.dtype=bfloat16;
sync_bn = model.batch_norm_groups=1;
grad_checkpointing gradient_checkpointing = model.remat=blocks;
pretrained weights finetune = init.weights={}; hf:timm/resnet50.a1_in1k
initial_checkpoint from_pretrained = init.weights={}; hf:timm/resnet50.a1_in1k
j workers num_workers threads nb_workers dataloader_num_workers = data.threads={}; 8
prefetch_factor = data.prefetch={}; 2
dataset = data.name={}; photos
data_dir data_path root dataset_dir = data.dir={}; DIR
img_size image_size imgsz = data.train_ops="decode | random_resized_crop({})"; 224
input_size resolution crop = data.train_ops="decode | random_resized_crop({})"; 224
val_split = data.train="train[:90%]" --config.data.eval="train[90%:]";
val_fraction = data.train="train[:90%]" --config.data.eval="train[90%:]";
validation_split = data.train="train[:90%]" --config.data.eval="train[90%:]";
num_classes classes n_classes = data.classes="cat, dog";
aa augmentation augmentations auto_augment = augment="flip | {}"; trivialaugment
hflip random_flip = augment=flip;
mixup mixup_alpha = mix="mixup({})"; 0.2
cutmix cutmix_alpha = mix="cutmix({})"; 1.0
mean std = normalize=imagenet;
label_smoothing = loss.smoothing={}; 0.1
criterion loss_fn loss = loss.name={}; softmax
class_weight = loss.class_weights={}; balanced
patience early_stopping early_stopping_patience early_stop = early_stop.patience={}; 5
monitor metric_for_best_model eval_metric = best.metric={}; top1
metrics metric = eval.metrics="top1 | {}"; macro_f1
model_ema ema ema_decay model_ema_decay = ema.decay={}; 0.999
random_seed manual_seed = seed={}; 0
eval_interval val_interval evaluation_strategy eval_steps = eval.every="{} steps"; 100
save_every save_steps checkpoint_interval save_interval = checkpoint.every="{} steps"; 1000
save_total_limit checkpoint_hist = checkpoint.keep={}; 3
log_interval logging_steps print_freq p = log.every="{} steps"; 50
wandb wandb_project log_wandb = log.wandb={}; my-project
profile = log.profile=10;
gpus gpu device devices num_gpus n_gpu ngpu = mesh.devices={}; 1
teacher = distill.run={}; RUN
o out output output_dir save_dir logdir log_dir = --workdir={}; runs/mine
experiment exp_name name project = --workdir={}; runs/mine
resume resume_from resume_from_checkpoint = --workdir={}; RUN
ckpt_path checkpoint auto_resume = --workdir={}; RUN
cfg yaml c = --config={}; configs/digits.py
world_size nnodes = --processes={}; 2
rank node_rank local_rank = --process={}; 0
master_addr dist_url = --coordinator={}; 10.0.0.1:4321
debug fast_dev_run summary = --dry_run;
"""


def _read(table: str) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for row in table.strip().splitlines():
        names, _, rest = row.partition(" = ")
        template, _, example = rest.rpartition(";")
        found |= {name: (template, example.strip()) for name in names.split()}
    return found


GUESSES = _read(_TABLE)
# A run goes on without a flag.
_RESUME = {"resume", "resume_from", "resume_from_checkpoint", "ckpt_path", "auto_resume"}


def advice(name: str, value: str = "") -> str:
    """Returns "give --config.KEY=VALUE" for a flag or key of another trainer, or "".

    name: without --; - stands for _. value: what was given, which the advice repeats.
    """
    name = name.lstrip("-").lower().replace("-", "_").removeprefix("config.")
    leaf = name.rpartition(".")[2]
    same = [key for key in KNOBS if key == name] or [
        key for key in KNOBS if key.rpartition(".")[2] == leaf
    ]
    if len(same) == 1 and leaf not in GUESSES:
        template, example = f"{same[0]}={{}}", str(KNOBS[same[0]].default).lower()
    elif leaf in GUESSES:
        template, example = GUESSES[leaf]
    else:
        return ""
    usual = value if value and value.lower() not in ("true", "false") else example
    text = template.replace("{}", usual if '"{' in template else shlex.quote(usual))
    text = text if text.startswith("--") else f"--config.{text}"
    if leaf in _RESUME:
        return f"the same command goes on; for another run's folder give {text}"
    return f"give {text}"
