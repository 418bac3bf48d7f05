"""The store, with small images made for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nex import __version__
from nex.errors import MachineError, NotFoundError, UsageError
from nex.images.distributions import runtime_digest
from nex.images.image import INITRD, KERNEL, LISTING, MANIFEST, ROOTFS, TREE, File, Image, Manifest
from nex.images.listing import listing
from nex.images.plan import digest_of
from nex.images.store import ImageStore, default_folder


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def put(
    store: ImageStore, *, note: str = "", types: tuple[str, ...] = ("native",), fits: bool = True, boots: bool = True
) -> Image:
    """Publish an image whose tree is one file with ``note``."""
    with store.workshop() as work:
        made = work / "image"
        (made / TREE / "etc").mkdir(parents=True)
        (made / TREE / "etc" / "note").write_text(note)
        (made / TREE / "link").symlink_to("etc/note")
        (made / LISTING).write_text(listing(made / TREE))
        for name in (ROOTFS, KERNEL, INITRD) if boots else ():
            (made / name).write_text(name + note)
        files = {p.name: File(p.stat().st_size, digest_of(p)) for p in made.iterdir() if p.is_file()}
        manifest = Manifest(
            architecture="x86_64",
            types=types,
            nex_version=__version__,
            python_version="3",
            kernel_version="6.1" if boots else "",
            runtime=runtime_digest(types) if fits else "other",
            built_of=note,
            tree_bytes=len(note),
            files=files,
        )
        (made / MANIFEST).write_bytes(manifest.encode())
        image = store.publish(made, manifest)
    number = len(list(store.folder.iterdir()))
    os.utime(image.folder, (number, number))  # the later the newer, whatever the clock's steps are
    return image


def test_the_default_folder() -> None:
    assert default_folder({"HOME": "/home/a"}) == Path("/home/a/.local/share/nex/images")
    assert default_folder({"HOME": "/home/a", "XDG_DATA_HOME": "/data"}) == Path("/data/nex/images")


def test_an_image_is_what_was_published(store: ImageStore) -> None:
    image = put(store, note="hello")
    assert store.list() == [image] == [store.get(image.digest[:4])]
    assert (image.tree / "etc" / "note").read_text() == "hello"
    assert image.bootable
    assert image.kernel is not None
    assert image.kernel.is_file()
    assert image.size_bytes == 5 + sum(
        p.stat().st_size for p in image.folder.iterdir() if p.name not in {TREE, MANIFEST}
    )
    assert store.folder.stat().st_mode & 0o777 == 0o700
    store.verify(image)


def test_an_empty_store_has_none(store: ImageStore) -> None:
    assert store.list() == []
    assert store.damaged() == {}
    assert store.prune(0) == []
    with pytest.raises(NotFoundError, match="no such image: abcd"):
        store.get("abcd")
    with pytest.raises(MachineError, match=r"no guest image of nex .* type v8, wasm in .*: run nex rootfs build"):
        store.find(["wasm", "v8"])


@pytest.mark.parametrize("prefix", ["", "ab", "../..", "ABCD", "x" * 8, "a" * 65])
def test_what_is_no_digest_is_refused(store: ImageStore, prefix: str) -> None:
    with pytest.raises(UsageError, match="is no digest of an image"):
        store.get(prefix)


def test_the_newest_that_fits_is_found(store: ImageStore) -> None:
    native = put(store, note="1")
    newer = put(store, note="2")
    both = put(store, note="3", types=("native", "wasm"))
    put(store, note="4", types=("native", "wasm"), fits=False)
    sandbox = put(store, note="5", boots=False)
    assert [image.built_of for image in store.list()] == ["5", "4", "3", "2", "1"]
    assert store.find(["native"], bootable=False) == sandbox
    assert store.find(["native"]) == both
    assert store.find([]) == both
    shutil.rmtree(both.folder)
    assert store.find(["native"]) == newer != native
    with pytest.raises(MachineError, match=r"type wasm in .* \(of 4 in it, none fits\)"):
        store.find(["wasm"])


def test_the_same_image_twice_is_one(store: ImageStore) -> None:
    assert put(store, note="same") == put(store, note="same")
    assert len(store.list()) == 1


def damage_file(image: Image) -> str:
    assert image.rootfs is not None
    data = bytearray(image.rootfs.read_bytes())
    data[0] ^= 1
    image.rootfs.write_bytes(data)
    return f"{ROOTFS} has changed"


def damage_content(image: Image) -> str:
    (image.tree / "etc" / "note").write_text("other")
    return "tree/etc/note has changed"


def damage_mode(image: Image) -> str:
    (image.tree / "etc" / "note").chmod(0o4755)
    return "tree/etc/note has changed"


def damage_link(image: Image) -> str:
    (image.tree / "link").unlink()
    (image.tree / "link").symlink_to("/etc/shadow")
    return "tree/link has changed"


def damage_by_adding(image: Image) -> str:
    (image.tree / "etc" / "more").write_text("")
    return "tree/etc/more does not belong to it"


def damage_by_removing(image: Image) -> str:
    (image.tree / "etc" / "note").unlink()
    return "tree/etc/note is missing"


def damage_listing(image: Image) -> str:
    path = image.folder / LISTING
    path.write_text(path.read_text().replace("644", "755"))
    return f"{LISTING} has changed"


@pytest.mark.parametrize(
    "damage",
    [damage_file, damage_content, damage_mode, damage_link, damage_by_adding, damage_by_removing, damage_listing],
)
def test_verify_names_what_has_changed(store: ImageStore, damage: type) -> None:
    image = put(store, note="hello")
    what = damage(image)
    with pytest.raises(MachineError, match=rf"{image.digest[:12]} is damaged: {what}; remove .* nex rootfs build"):
        store.verify(image)


def test_an_image_that_is_not_complete_is_not_found(store: ImageStore) -> None:
    image = put(store, note="hello")
    assert image.kernel is not None
    image.kernel.write_text("short")
    assert store.list() == []
    assert store.damaged() == {image.digest: f"{KERNEL} has 5 bytes instead of 12"}
    with pytest.raises(MachineError, match="has 5 bytes"):
        store.get(image.digest)
    image.kernel.unlink()
    assert "No such file" in store.damaged()[image.digest]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": 1}', b"\xff"])
def test_a_manifest_that_is_none_is_damage(store: ImageStore, data: bytes) -> None:
    image = put(store)
    (image.folder / MANIFEST).write_bytes(data)
    assert store.list() == []
    assert "image.json is damaged" in store.damaged()[image.digest]


def test_a_manifest_cannot_be_exchanged(store: ImageStore) -> None:
    image, other = put(store, note="1"), put(store, note="2")
    (image.folder / MANIFEST).write_bytes((other.folder / MANIFEST).read_bytes())
    assert store.damaged() == {image.digest: "image.json is not what the image's name says"}


def test_prune_keeps_the_newest_what_fits_and_what_is_used(store: ImageStore) -> None:
    oldest = put(store, note="1", fits=False)
    used = put(store, note="2", fits=False)
    fitting = put(store, note="3")
    newest = put(store, note="4", fits=False)
    broken = put(store, note="5", fits=False)
    (broken.folder / ROOTFS).unlink()
    with store.lease(used):
        assert store.prune(1) == [oldest]
        assert {i.digest for i in store.list()} == {used.digest, fitting.digest, newest.digest}
    assert not broken.folder.exists()
    assert store.prune(0) == [newest, used]
    assert store.list() == [fitting]


def test_prune_forgets_kernels_when_asked(store: ImageStore) -> None:
    put(store)
    (store.kernels / "6.1").mkdir(parents=True)
    store.prune(1)
    assert store.kernels.exists()
    store.prune(1, kernels=True)
    assert not store.kernels.exists()


def test_a_lease_of_what_is_gone_fails(store: ImageStore) -> None:
    image = put(store)
    shutil.rmtree(image.folder)
    with pytest.raises(MachineError, match="is gone"), store.lease(image):
        pass


def test_what_a_killed_build_left_is_removed_by_the_next(store: ImageStore) -> None:
    put(store)
    left = store.folder / ".work-killed"
    left.mkdir()
    (left / "big").write_text("x")
    with store.workshop() as ours:
        assert not left.exists()
        with store.workshop() as theirs:  # another build leaves ours alone
            assert ours.is_dir()
            assert theirs != ours
        assert ours.is_dir()
    assert not ours.exists()


def test_a_folder_that_others_can_write_is_refused(store: ImageStore) -> None:
    store.folder.mkdir(mode=0o700)
    store.folder.chmod(0o770)
    with pytest.raises(MachineError, match="can be written by others"), store.workshop():
        pass


def test_an_image_that_others_can_change_is_not_trusted(store: ImageStore) -> None:
    image = put(store)
    for folder in (store.folder, image.folder):
        folder.chmod(0o770)
        with pytest.raises(MachineError, match=f"{folder.name} can be written by others: chmod go-w it"):
            store.verify(image)
        folder.chmod(0o700)
    store.verify(image)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(MachineError, match=r"file/images cannot be used: Not a directory"),
        ImageStore(tmp_path / "file" / "images").workshop(),
    ):
        pass
