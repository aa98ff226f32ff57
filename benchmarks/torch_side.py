"""PyTorch's side of the benchmarks: reference networks, and a process of its own that runs them when asked."""

import copy
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from timing import seconds_a_call  # beside this file

from cspine_jax.memory import keep_freed_memory

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):  # a torchvision whose compiled part does not fit torch lacks these at import
    try:
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass
import timm  # noqa: E402
import torchvision  # noqa: E402

TIMM = {name: name for name in ("resnet18d", "tf_efficientnetv2_s", "tf_efficientnetv2_l")}
TIMM["efficientnet_lite0"] = "tf_efficientnet_lite0"
AUXILIARY = ("googlenet", "inception_v3")


def reference(name: str) -> torch.nn.Module:
    """The network of that name in torchvision, or in timm (`TIMM`), with random weights and without dropout."""
    if name in TIMM:
        return timm.create_model(TIMM[name], num_classes=1000, drop_rate=0.0, drop_path_rate=0.0)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name in AUXILIARY else {}
    net = getattr(torchvision.models, name)(**options)
    if name == "vit_b_16":  # its head begins as zeros, and so would all logits
        torch.nn.init.normal_(net.get_submodule("heads.head").weight, std=0.01)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    return net


def settle(net: torch.nn.Module, image: torch.Tensor) -> None:
    """Takes the statistics of one batch: without, a deep untrained network fades to zeros and parity says nothing."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(image)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def serve(pipe: Connection, threads: int, keep: bool) -> None:
    """Runs networks on demand until the pipe closes.

    Messages: ("build", name, x `[B, H, W, 3]`, labels `[B]`) is answered with ("torchvision" or "timm", state dict,
    logits in float64); ("inference" or "training", calls) with the seconds of one, see `timing.seconds_a_call`.

    Args:
        pipe: to the process that asks.
        threads: PyTorch's.
        keep: whether this process keeps freed memory, as this package's programs do.
    """
    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    while True:
        try:
            what, *rest = pipe.recv()
        except EOFError:
            return
        if what == "build":
            net, image, labels = _built(*rest)
            optimizer = torch.optim.SGD(net.parameters(), 1e-3)
            with torch.inference_mode():  # float64: its own float32 is off by up to 1.4e-4
                logits = copy.deepcopy(net).double()(image.double()).numpy()
            table = {key: value.detach().numpy() for key, value in net.state_dict().items()}
            pipe.send(("timm" if rest[0] in TIMM else "torchvision", table, logits))
            continue
        net.train(what == "training")  # not in the calls: it walks all modules
        pipe.send(
            seconds_a_call(partial(_step if what == "training" else _answer, net, image, labels, optimizer), *rest)
        )


def _answer(net: torch.nn.Module, image: torch.Tensor, *_: Any) -> None:
    with torch.inference_mode():
        net(image)


def _step(net: torch.nn.Module, image: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(image), labels).backward()
    optimizer.step()


def _built(name: str, x: np.ndarray, labels: np.ndarray) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = reference(name).to(memory_format=torch.channels_last)
    image = torch.from_numpy(x).permute(0, 3, 1, 2)
    settle(net, image)
    return net.eval(), image, torch.from_numpy(labels)
