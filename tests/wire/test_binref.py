"""Files between two processes: what is written can be read, what lies outside cannot, what was written goes away."""

import errno
import os
import threading

import lz4.frame
import numpy as np
import pytest

from tesseract_flow.errors import WireError
from tesseract_flow.wire import BinrefWriter, decode_array, encode_array


def reference(buffer, shape=(2,), dtype="float64", compression=None):
    data = {"buffer": buffer, "encoding": "binref"} | ({"compression": compression} if compression else {})
    return {"object_type": "array", "shape": list(shape), "dtype": dtype, "data": data}


@pytest.fixture
def root(tmp_path):
    """An output folder with one good file of [1.0, 2.0] at offset 8, next to a secret."""
    folder = tmp_path / "out"
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "a.bin").write_bytes(bytes(8) + np.array([1.0, 2.0]).tobytes())
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    return folder


def test_writer_puts_aligned_buffers_into_one_file_and_deletes_it(tmp_path):
    arrays = [np.arange(3.0), np.zeros(0), np.float32(7), np.arange(5, dtype=np.int8)]
    with BinrefWriter(tmp_path) as writer:
        assert list(tmp_path.iterdir()) == []
        encoded = [encode_array(a, "binref", binref=writer) for a in arrays]
        encoded += [encode_array(a, "binref", compression="lz4", binref=writer) for a in arrays]
        assert list(tmp_path.iterdir()) == [writer.path]
        for obj, array in zip(encoded, arrays * 2, strict=True):
            name, offset, *size = obj["data"]["buffer"].split(":")
            assert tmp_path / name == writer.path
            assert int(offset) % 64 == 0 or array.size == 0
            assert len(size) == ("compression" in obj["data"])
            decoded = decode_array(obj, binref_root=tmp_path)
            assert decoded.tobytes() == array.tobytes()
            assert decoded.shape == array.shape
    assert list(tmp_path.iterdir()) == []


def test_writer_deletes_on_errors_too_and_is_closed_for_good(tmp_path):
    writer = BinrefWriter(tmp_path)
    with pytest.raises(WireError, match="dtype"), writer:  # noqa: PT012 - what the context does on an error is the point
        writer.write(b"12345678")
        encode_array(np.array(["text"]), "binref", binref=writer)
    assert list(tmp_path.iterdir()) == []
    writer.close()
    with pytest.raises(WireError, match="closed"):
        writer.write(b"1")


def test_a_file_already_deleted_by_the_other_side_is_no_error(tmp_path):
    with BinrefWriter(tmp_path) as writer:
        writer.write(b"1")
        writer.path.unlink()


def test_decoded_arrays_outlive_the_file(tmp_path):
    with BinrefWriter(tmp_path) as writer:
        decoded = decode_array(encode_array(np.arange(1000.0), "binref", binref=writer), binref_root=tmp_path)
    np.testing.assert_array_equal(decoded, np.arange(1000.0))


def test_threads_share_a_writer(tmp_path):
    arrays = [np.full(1000 + i, float(i)) for i in range(40)]
    encoded = [None] * len(arrays)

    with BinrefWriter(tmp_path) as writer:

        def write(start):
            for i in range(start, len(arrays), 4):
                encoded[i] = encode_array(arrays[i], "binref", binref=writer)

        threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for obj, array in zip(encoded, arrays, strict=True):
            np.testing.assert_array_equal(decode_array(obj, binref_root=tmp_path), array)


def test_a_missing_folder_is_a_wire_error(tmp_path):
    with pytest.raises(WireError, match=r"cannot write .*nowhere"), BinrefWriter(tmp_path / "nowhere") as writer:
        writer.write(b"1")


class FullDisk:
    """Takes three bytes at a time until it is full."""

    def __init__(self, room):
        self.room = room
        self.taken = b""

    def seek(self, offset):
        self.taken = self.taken[:offset]

    def write(self, data):
        if len(self.taken) >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.taken += bytes(data[:3])
        return len(bytes(data[:3]))

    def close(self):
        pass


def test_short_writes_are_continued_and_a_full_disk_is_reported(tmp_path):
    with BinrefWriter(tmp_path) as writer:
        writer._file = FullDisk(room=10)
        assert writer.write(b"abcdefgh").endswith(":0")
        assert writer._file.taken == b"abcdefgh"
        with pytest.raises(WireError, match="No space left"):
            writer.write(b"x" * 30)


@pytest.mark.parametrize(
    "buffer", ["run/a.bin:8", "run/../run/a.bin:8", "./run/a.bin:8:16", "inner:8", "folder/a.bin:8"]
)
def test_references_inside_are_read(root, buffer):
    (root / "inner").symlink_to("run/a.bin")
    (root / "folder").symlink_to(root / "run")
    np.testing.assert_array_equal(decode_array(reference(buffer), binref_root=root), [1.0, 2.0])


def test_an_absolute_path_inside_is_read_and_the_root_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    obj = reference(f"{root}/run/a.bin:8")
    np.testing.assert_array_equal(decode_array(obj, binref_root=tmp_path / "link"), [1.0, 2.0])
    np.testing.assert_array_equal(decode_array(obj, binref_root=str(root)), [1.0, 2.0])


@pytest.mark.parametrize(
    "buffer",
    ["../secret.bin", "run/../../secret.bin", "{tmp}/secret.bin:0", "leak", "leaks/secret.bin", "chain", "{root}2/x"],
)
def test_references_that_leave_the_root_are_refused(root, tmp_path, buffer):
    (root / "leak").symlink_to(tmp_path / "secret.bin")
    (root / "leaks").symlink_to("..")
    (root / "chain").symlink_to("leak")
    (tmp_path / "out2").mkdir()
    (tmp_path / "out2" / "x").write_bytes(bytes(64))
    with pytest.raises(WireError, match="leaves"):
        decode_array(reference(buffer.format(tmp=tmp_path, root=root)), binref_root=root)


@pytest.mark.parametrize("buffer", ["file:///etc/hostname", "http://localhost/a.bin:8", "s3://bucket/key"])
def test_urls_are_refused(root, buffer):
    with pytest.raises(WireError, match="URL"):
        decode_array(reference(buffer), binref_root=root)


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ("run/a.bin", None),
        ("run/a.bin:9", "has 24 bytes; expected 16 bytes from 9 on"),
        ("run/a.bin:999999999999999999", "has 24 bytes"),
        ("run/a.bin:8:15", "names 15 bytes, but shape and dtype make 16"),
        ("run/b.bin", "cannot read"),
        ("run", "cannot read"),
        ("pipe", "not a regular file"),
        ("ring", "cannot (read|resolve)"),
        ("", "expected a binref buffer"),
        (":8", "cannot read"),
        ("a\0b", "cannot resolve"),
        ("\udcff\ud800", "cannot resolve"),
        ("x" * 5000, "cannot read"),
        ("run/a.bin:-8", "cannot read"),
        ("run/a.bin:\u0663", "cannot read"),
        (["run/a.bin"], "expected a binref buffer"),
        (None, "expected a binref buffer"),
    ],
    ids=lambda v: str(v)[:20].encode("ascii", "replace").decode(),
)
def test_files_and_references_that_do_not_fit_are_refused(root, buffer, message):
    os.mkfifo(root / "pipe")
    (root / "ring").symlink_to("ring")
    if message is None:
        assert decode_array(reference(buffer), binref_root=root).tolist() == [0.0, 1.0]
        return
    with pytest.raises(WireError, match=message):
        decode_array(reference(buffer), binref_root=root)


def test_a_link_put_in_after_the_check_is_not_followed(root, tmp_path, monkeypatch):
    from tesseract_flow.wire import binref

    real = binref._inside

    def swap(name, base):
        path = real(name, base)
        path.unlink()
        path.symlink_to(tmp_path / "secret.bin")
        return path

    monkeypatch.setattr(binref, "_inside", swap)
    with pytest.raises(WireError, match="cannot read"):
        decode_array(reference("run/a.bin:8"), binref_root=root)


def test_without_a_root_nothing_is_read(root):
    with pytest.raises(WireError, match="binref_root="):
        decode_array(reference(f"{root}/run/a.bin:8"))
    with pytest.raises(WireError, match="cannot resolve"):
        decode_array(reference("run/a.bin:8"), binref_root=root / "nowhere")


def test_compressed_files_are_measured_before_and_after(root):
    frame = lz4.frame.compress(np.array([1.0, 2.0]).tobytes())
    (root / "c.bin").write_bytes(b"abc" + frame + b"tail")
    good = reference(f"c.bin:3:{len(frame)}", compression="lz4")
    np.testing.assert_array_equal(decode_array(good, binref_root=root), [1.0, 2.0])
    for buffer, message in [
        ("c.bin:3", "expected 'path:offset:compressed_size'"),
        (f"c.bin:3:{len(frame) + 5}", "expected .* bytes from 3 on"),
        (f"c.bin:3:{len(frame) + 2}", "stray bytes"),
        (f"c.bin:3:{len(frame) - 1}", "breaks off"),
        (f"c.bin:2:{len(frame)}", "something else"),
    ]:
        with pytest.raises(WireError, match=message):
            decode_array(reference(buffer, compression="lz4"), binref_root=root)
    with pytest.raises(WireError, match="max_bytes"):
        decode_array(good, binref_root=root, max_bytes=16)
