"""One study from DICOM to probabilities the winners' way, stage by stage, and its networks against PyTorch's.

    python benchmarks/study.py                                     # needs the extra [parity]
    python benchmarks/study.py --backbone efficientnet_v2_s --size 224 --slices 300 --json

A phantom study is written as DICOM, read, its vertebrae are found with the weights of the package, cut out (15
positions of 6 channels each), and the winners' Type 2 network (CNN, two bidirectional LSTMs, two heads; random weights,
so that the answer means nothing) gives 105 slice logits and the patient's, which are aggregated. Reading, naming and
cutting have no counterpart. The networks run a second time in PyTorch on the very arrays that they were given here:
same shapes, the CNN and what follows with the same weights and outputs that must agree. Both sides run in turns; the
ratio is the median of theirs / ours: above 1 means that this package is faster.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from segment import REFINE, SPINE, alternate, both
from torch_side import reference  # beside this file; names torchvision's missing operators before it imports it

from cspine_jax import xla
from cspine_jax.aggregation import gold_targets
from cspine_jax.anatomy import NUM_VERTEBRAE, TARGETS
from cspine_jax.augment import window
from cspine_jax.config import AugmentConfig, CropsConfig
from cspine_jax.ct import read_study
from cspine_jax.data.crops import cut
from cspine_jax.data.crops.layout import CropLayout
from cspine_jax.inference import weights
from cspine_jax.inference.vertebrae.segment import Segmenter
from cspine_jax.models.backbones import family_of
from cspine_jax.models.pretrained import converted, overlaid
from cspine_jax.models.study.gold import NAMES, PatientSequence
from cspine_jax.phantom.dataset import write_dataset

CHANNELS = 6


class TorchGold(torch.nn.Module):
    """The published Type 2 network over one of torchvision's backbones."""

    def __init__(self, backbone: str, hidden: int = 256):
        super().__init__()
        nn = torch.nn
        net = reference(backbone)
        for name, module in net.named_modules():
            if isinstance(module, nn.Conv2d):  # the first one: six channels in place of three
                parent, _, last = name.rpartition(".")
                options = {key: getattr(module, key) for key in ("kernel_size", "stride", "padding")}
                first = nn.Conv2d(CHANNELS, module.out_channels, bias=module.bias is not None, **options)
                setattr(net.get_submodule(parent), last, first)
                break
        head = "classifier" if hasattr(net, "classifier") else "fc"
        last = getattr(net, head)
        features = (last[-1] if isinstance(last, nn.Sequential) else last).in_features
        setattr(net, head, nn.Identity())
        self.encoder = net
        for k in ("", "2"):
            setattr(self, f"lstm{k}", nn.LSTM(features, hidden, 2, bidirectional=True, batch_first=True))
            layers = (nn.Linear(2 * hidden, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.3), nn.LeakyReLU(0.1))
            setattr(self, f"head{k}", nn.Sequential(*layers, nn.Linear(hidden, 1)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 6, H, W] crops of one study -> logits of the slices [N] and of the patient [1]."""
        embedding = self.encoder(x)[None]
        slices, patient = self.lstm(embedding)[0][0], self.lstm2(embedding)[0][:, 0]
        return self.head(slices)[:, 0], self.head2(patient)[:, 0]


def gold(backbone: str, net: TorchGold) -> tuple[nnx.GraphDef, nnx.State]:
    """`PatientSequence` with the weights of `net`."""
    graph, state = nnx.split(nnx.eval_shape(lambda: PatientSequence(backbone, in_channels=CHANNELS, rngs=nnx.Rngs(0))))
    table = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    trunk = {name.removeprefix("encoder."): value for name, value in table.items() if name.startswith("encoder.")}
    rules = family_of(backbone).NAMES["torchvision"]
    arrays, missing, misshapen, _ = converted(state["encoder"]["backbone"], trunk, rules)
    if missing or misshapen:
        raise SystemExit(f"{backbone}: the two networks differ: missing {missing[:3]}, misshapen {misshapen[:3]}")
    whole = {("encoder", "backbone", *path): value for path, value in arrays.items()}
    rest, missing, misshapen, _ = converted(state, table, NAMES)
    if misshapen or any(not name.startswith("encoder.") for name in missing):
        raise SystemExit(f"gold: the two networks differ: missing {missing[-3:]}, misshapen {misshapen[:3]}")
    return graph, overlaid(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state), whole | rest)


class Recorded:
    """A network that remembers what it was given."""

    def __init__(self, network: Callable):
        self.network, self.seen = network, []

    def __call__(self, image: Any) -> Any:
        self.seen.append(np.asarray(image))
        return self.network(image)


def crops(volume: Any, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [105, size, size, 6] of C1..C7 and bool [105], false for a level that is not there."""
    layout, seen = CropLayout.of(CropsConfig(size=size)), cut.look(labels)
    image = np.zeros((NUM_VERTEBRAE, layout.positions, size, size, CHANNELS), np.float32)
    there = np.zeros((NUM_VERTEBRAE, layout.positions), bool)
    for level in range(1, NUM_VERTEBRAE + 1):
        if level in seen:
            where = cut.plan(labels, np.asarray(volume.spacing_mm), level, layout, seen)
            hu, mask = cut.sample(volume.hu, labels, where, layout)
            image[level - 1] = np.concatenate([np.asarray(window(hu, AugmentConfig())), mask[..., None]], axis=-1)
            there[level - 1] = True
    return image.reshape(-1, size, size, CHANNELS), there.reshape(-1)


def stages(folder: Path, segmenter: Segmenter, network: Callable, size: int) -> tuple[dict[str, float], Any]:
    """Seconds of each stage of one study, and the crops."""
    seconds, clock = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.perf_counter() - clock, time.perf_counter()

    volume = read_study(folder)
    lap("read DICOM")
    labels = segmenter(volume).labels
    lap("vertebrae")
    image, there = crops(volume, labels, size)
    lap("crops")
    out = jax.block_until_ready(network(image[None], there[None]))
    lap("network")
    f, patient = (np.asarray(jax.nn.sigmoid(out[name]))[0] for name in ("slice", "patient"))
    answer = gold_targets(f.reshape(NUM_VERTEBRAE, -1), patient, there.reshape(NUM_VERTEBRAE, -1))
    lap("aggregation")
    assert answer.shape == (len(TARGETS),)
    return seconds, (image, there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_v2_s")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop")
    parser.add_argument("--matrix", type=int, default=512, help="pixels of a slice")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    spine, refine, _ = weights.load()
    spine, refine = Recorded(spine), Recorded(refine)
    segmenter = Segmenter(spine, refine)
    torch.manual_seed(0)
    net = TorchGold(args.backbone).eval().to(memory_format=torch.channels_last)
    graph, state = gold(args.backbone, net)
    run = xla.jit(lambda state, image, there: nnx.merge(graph, state)(image, there))

    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", 1, seed=5, size=args.matrix, scale=1.0)
        study = next((Path(folder) / "data" / "train_images").iterdir())
        for extra in sorted(study.iterdir(), key=lambda file: int(file.stem))[args.slices :]:
            extra.unlink()
        rows = []
        for _ in range(1 + args.repeats):  # the first one compiles
            spine.seen, refine.seen = [], []
            seconds, (image, there) = stages(study, segmenter, lambda *x: run(state, *x), args.size)
            rows.append(seconds)
    seconds = {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}

    if not there.any():
        raise SystemExit(f"--slices={args.slices}: no vertebra is named in them; take more of the study")
    x = torch.from_numpy(image[there]).permute(0, 3, 1, 2)
    modules = [
        (both(spec)[3].eval(), [torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in network.seen])
        for spec, network in ((SPINE, spine), (REFINE, refine))
    ]

    @torch.inference_mode()
    def their_vertebrae() -> None:
        for module, seen in modules:
            for each in seen:
                module(each.to(memory_format=torch.channels_last_3d))

    def our_vertebrae() -> None:
        for network in (spine, refine):
            for each in network.seen.copy():
                jax.block_until_ready(network.network(each))

    @torch.inference_mode()
    def their_gold() -> tuple[torch.Tensor, torch.Tensor]:
        return net(x)

    def our_gold() -> Any:
        return jax.block_until_ready(run(state, image[None], there[None]))

    mine, yours = our_gold(), their_gold()
    np.testing.assert_allclose(np.asarray(mine["slice"])[0][there], yours[0].numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(mine["patient"]), yours[1].numpy(), rtol=1e-3, atol=1e-3)
    ratios = {
        "vertebra networks": alternate(our_vertebrae, their_vertebrae, args.repeats),
        f"Type 2, {args.backbone}": alternate(our_gold, their_gold, args.repeats),
    }
    if args.json:
        print(json.dumps({"seconds": seconds, "levels": int(there.sum()) // 15, "ratios": ratios}, indent=1))
        return
    print(f"{args.slices} slices of {args.matrix} px, {int(there.sum())} crops of {args.size} px")
    for name, value in seconds.items():
        print(f"{name:<14}{value:8.2f} s")
    print(f"{'in all':<14}{sum(seconds.values()):8.2f} s")
    for name, (ours, theirs, ratio) in ratios.items():
        print(f"{name}: JAX {ours:.2f} s, PyTorch {theirs:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
