"""A record never decides what is opened, imported or asked of a network: the caller says the name again."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COLOURS, RUNTIME, TINY, need, write_image

import featurecache as fc
from featurecache.backbones import registry
from featurecache.deployment.export import export_head
from featurecache.deployment.kept import keep_head
from featurecache.errors import FeatureCacheError, NotAgreedError
from featurecache.extraction.reproduction import reproduce_backbone
from featurecache.heads.bundle import load_head, save_head
from featurecache.specs import ExtractionSettings, FeatureIdentity

SETTINGS = ExtractionSettings(runtime="torch", batch_size=4)
SQUEEZENET = "torchvision:squeezenet1_1"


class Watch:
    """What this process opens and connects to while it is watched."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is not None and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
            self.seen.append(f"{event} {arguments[0] if event == 'open' else ''}")

    def during(self, work: Callable[[], Any]) -> list[str]:
        self.seen = []
        try:
            work()
        except FeatureCacheError:
            pass
        finally:
            seen, self.seen = self.seen, None
        return seen


WATCH = Watch()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved head, and one image beside its cache."""
    folder = tmp_path_factory.mktemp("head")
    for number, (label, colour) in enumerate(COLOURS.items()):
        for i in range(6):
            write_image(folder / "photos" / label / f"{i}.png", colour, seed=100 * number + i)
    shutil.copy2(folder / "photos" / "red" / "0.png", folder / "new.png")
    store = fc.extract(folder / "photos", folder / "cache", backbone=TINY, settings=SETTINGS)
    task = store.add_task("colour", fc.labels_from_folders())
    return keep_head(store, "h", fc.train_heads(store, task, store.feature_sets(), ["ridge"], n_jobs=1).best)


def forged(saved: Path, backbone: str, made_with: str = "timm x", **meta: Any) -> Path:
    """Return another saved head, whose record names what a stranger likes."""
    estimator, record = load_head(saved)[:2]
    record = {**record, "weights_source": made_with, **meta}
    record["identity"] = {**record["identity"], "backbone": backbone}
    folder = saved.parent / "forged"
    save_head(folder, estimator, record)
    return folder


def new_image(head: Path) -> Path:
    return head.parents[2] / "new.png"


@pytest.mark.parametrize("verb", [fc.predict, export_head])
@pytest.mark.parametrize(
    "kind", ["hf:{}", "hf:{}/../encoder", "file:{}/program.pt2", "hub:{}:evil", "python:evil:make"]
)
def test_what_a_record_names_is_not_opened(
    kind: str, verb: Callable, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for name in ("config.json", "program.pt2", "hubconf.py", "evil.py"):
        (encoder / name).write_text("raise SystemExit")
    monkeypatch.chdir(encoder)
    record = forged(head, name := kind.format(encoder))
    target: Any = [new_image(head)] if verb is fc.predict else tmp_path / "out.onnx"
    with pytest.raises(NotAgreedError) as caught:
        verb(record, target)
    assert caught.value.options == ("--backbone", name)
    assert not [seen for seen in WATCH.during(lambda: verb(record, target)) if str(encoder) in seen]


def test_a_path_that_a_head_names_is_opened_once_it_is_said_again(head: Path, tmp_path: Path) -> None:
    """That the test above can fail."""
    (tmp_path / "program.pt2").write_bytes(b"no program")
    record = forged(head, name := f"file:{tmp_path / 'program.pt2'}")
    seen = WATCH.during(lambda: fc.predict(record, [new_image(head)], backbone=name))
    assert [each for each in seen if "program.pt2" in each]


def test_the_message_prints_the_very_command(head: Path, call: Callable) -> None:
    record = forged(head, "hf:somebody/a model; rm -rf ~", "file net's.pth (sha256 0123456789ab)")
    command = ["predict", str(record), str(new_image(head)), "--quiet"]
    status, out, err = call(*command)
    assert (status, out, err.count("\n")) == (2, "", 1)
    printed = err.partition("; then the command is: ")[2]
    options = ["--backbone", "hf:somebody/a model; rm -rf ~", "--weights", "net's.pth"]
    assert shlex.split(printed) == ["featurecache", *command, *options]


def test_layers_and_backbone_are_asked_for_in_one_line(head: Path, call: Callable) -> None:
    record = forged(head, "hub:nets:tiny", head="python:mine:layers")
    status, _, err = call("predict", record, new_image(head))
    assert status == 2
    assert err.rstrip().endswith("--layers python:mine:layers --backbone hub:nets:tiny")


def test_a_page_of_a_hub_is_asked_for_only_when_it_is_said_again(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("timm")
    need("transformers")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("hf:somebody/model", "timm:resnet10t.c3_in1k", "timm:vit_tiny_patch16_224"):
        record = forged(head, name)
        seen = WATCH.during(lambda: fc.predict(record, [new_image(head)]))  # noqa: B023
        assert not [each for each in seen if each.startswith("socket.")]
        with pytest.raises(NotAgreedError) as caught:
            fc.predict(record, [new_image(head)])
        assert caught.value.options == ("--backbone", name)
    seen = WATCH.during(lambda: fc.predict(record, [new_image(head)], backbone=name))
    assert [each for each in seen if each.startswith("socket.")]


def test_a_registry_opens_as_it_stands_where_its_weights_are_here(
    make_folder: Callable, tmp_path: Path, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurecache.backbones.torchvision_compat import import_torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    weights.parent.mkdir(parents=True)
    torch.save(import_torchvision().models.squeezenet1_1().state_dict(), weights)
    source = make_folder(per_class=6)
    options = ["--backbone", SQUEEZENET, "--crop", "64", "--resize", "64", *RUNTIME]
    assert call("extract", source, "--cache", tmp_path / "c", *options)[0] == 0
    call("task", "add", tmp_path / "c", "colour", "--from-folders")
    assert call("train", tmp_path / "c", "--task", "colour", "--head", "ridge", "--save", "h", "--quiet")[0] == 0
    command = ["predict", tmp_path / "c" / "heads" / "h", next(source.rglob("*.png")), "--quiet"]
    assert call(*command)[0] == 0
    weights.unlink()
    status, _, err = call(*command)
    assert status == 2
    assert "squeezenet1_1 are not on this machine; to download them, pass --backbone torchvision:squeezenet1_1" in err
    status, _, err = call("export", command[1], "--out", tmp_path / "o.onnx")
    assert (status, err.rstrip().endswith(f"--backbone {SQUEEZENET}")) == (2, True)
    status, out, _ = call("verify", tmp_path / "c", "--deep", "--source", source)
    assert (status, "not computed again" in out) == (1, True)


class Strange:
    """A provider of somebody else, whose names may be paths."""

    packages = ()

    def list_names(self) -> list[str]:
        return ["strange:known"]

    def build(self, name: str, **_options: Any) -> Any:
        raise AssertionError(f"built {name}")

    def own_weights_digest(self, name: str) -> str | None:
        return None

    def reproducible(self, name: str) -> bool:
        return False


@pytest.fixture
def strange() -> Iterator[None]:
    registry.register_provider("strange:", Strange())
    yield
    del registry._PROVIDERS["strange:"]


@pytest.mark.usefixtures("strange")
def test_names_that_a_plug_in_does_not_list_are_said_again(head: Path) -> None:
    identity = FeatureIdentity.from_json({**load_head(head)[1]["identity"], "backbone": "strange:/etc/passwd"})
    with pytest.raises(NotAgreedError, match="which its provider does not list"):
        reproduce_backbone(identity, "x", needed_by="this head")
    identity = FeatureIdentity.from_json({**identity.to_json(), "backbone": "strange:known"})
    with pytest.raises(AssertionError, match="built known"):
        reproduce_backbone(identity, "x", needed_by="this head")


def test_the_command_that_run_prints_names_a_folder_of_the_hub(
    make_folder: Callable, tmp_path: Path, call: Callable
) -> None:
    checkout = tmp_path / "nets"
    checkout.mkdir()
    (checkout / "hubconf.py").write_text("from tiny_backbones import tiny\n")
    backbone = f"hub:{checkout}:tiny"
    options = ["--cache", tmp_path / "c", "--backbone", backbone, "--head", "ridge", *RUNTIME]
    status, out, _ = call("run", source := make_folder(per_class=6), *options)
    assert status == 0
    printed = shlex.split(out.partition("label new images with: ")[2])
    assert printed[-2:] == ["--backbone", backbone]
    assert call(*printed[1:3], next(source.rglob("*.png")), *printed[4:], "--quiet")[0] == 0
