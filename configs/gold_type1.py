"""Gold's Type 1: 15 slices of one vertebra, a CNN on each, a bidirectional LSTM over them, a logit for each.

    python launch.py --config=configs/gold_type1.py --config.data.manual_dir=/data/rsna
    python launch.py --config=configs/gold_type1.py:phantom
    python launch.py --config=configs/gold_type1.py:phantom-more
    python launch.py --config=configs/gold_type1.py:phantom-staged
    python launch.py --config=configs/gold_type1.py:smoke

Every slice has the label of its vertebra (`study.slice_labels="copy"`; few real studies have fracture boxes), positives
weigh twice; a vertebra is the mean of its five highest slices and the patient 1 - prod(1 - p_j). `full`, the default,
is the winners' recipe: 224 px (they ended at 512, `--config.crops.size=512`), EfficientNetV2-S, AdamW 2e-4 to 2e-5 by a
cosine, 50 epochs, flips, transposition, grid distortion, blur, cutout, mixup of half of the examples, slice shuffle of
a fifth. They started from ImageNet: `--config.model.pretrained=FILE` (torchvision's EfficientNetV2-S); without it the
network is random. Crops are cut by the true masks, which 87 studies have. For all 2,019 segment every one of them, the
87 too (`cspine segment /data/rsna/train_images/* --out segmented`; the package's weights have learnt from none), and
give `--config.crops.masks=segmented`; with a segmenter of your own one folder a fold, `'segmented/fold*'`, each with a
`part.csv` (`datasets/rsna_cspine/README.md`).
`phantom` is smaller as `recipe_parts/crops.py` says: EfficientNet-Lite0 from ImageNet, labels of slices by the boxes,
which also teach where the break is, five of ten positions a training step, a vertebra the mean of the two highest.
`phantom-more` goes on from the gold that comes with the package (`package:gold`, other phantoms), 1,200 steps at half
the rate, and two training crops in five show nothing but bone (`augment.bone_only`). `phantom-staged` is that gold
with its encoder as it is; what stands on it learns 150 steps on.

Cost: `full` 2,019 x 7 vertebrae, 50 epochs of 530 steps of 16 vertebrae, about 70 GB of crops (350 at 512 px, where
`--config.study.chunk=24` saves memory; estimates from the phantoms' compression); `phantom` 3 hours on two slow CPU
cores and 15 GB (`--config.data.cache_mb=0` takes 6 less), `phantom-more` 35 minutes, after 40 minutes for 1,500
phantoms (43 GB on the disk) and 10 for their crops (8 GB); `phantom-staged` (not run) minutes;
`smoke` seconds.
Expected: the winners' whole ensemble has patient AUC .95 to .97. `full` was not run here: the data need a licence.
`phantom-more`, 150 held-out studies of fold 0 of 10: vertebra AUC .972 [.955, .986], patient .951 [.899, .977], metric
A of p .200, of calibrated p .192; on 150 phantoms made afterwards .963 [.941, .981], .958 [.924, .985], .206 (phantom).
`phantom`, on 1,600 of 2,000 studies, 200 held out: .982, .942, .210 (phantom); `docs/comparison.md`.
"""

from ml_collections import ConfigDict
from recipe_parts import SHARED, layered
from recipe_parts.crops import CROPS

VARIANTS = ("full", "phantom", "phantom-more", "phantom-staged", "smoke")

RECIPE = {
    "full": {
        "name": "gold_type1",
        "data": {"prefetch": 4},
        "study": {"model": "gold", "hidden": 256, "layers": 2, "fractured_fraction": 0.0},
        "model": {"dropout": 0.3},
    },
    "phantom": {
        "data": {"batch_size": 24},
        "study": {"hidden": 64, "layers": 1, "fractured_fraction": 0.4, "slice_labels": "box", "train_positions": 5},
        "train": {"total_steps": 3000, "eval_steps": 250},
    },
    "phantom-more": {
        "model": {"pretrained": ""},
        "augment": {"bone_only": 0.4},
        "optim": {"lr": 5e-4},
        "train": {"init_from": "package:gold", "total_steps": 1200, "eval_steps": 200},
    },
    "smoke": {
        "data": {"batch_size": 4, "eval_batch_size": 8},
        "study": {"hidden": 8, "layers": 1, "fractured_fraction": 0.3},
    },
}


def get_config(variant: str = "full") -> ConfigDict:
    """What differs from the defaults in `cspine_jax/config`."""
    return layered(variant, SHARED, CROPS, RECIPE)
