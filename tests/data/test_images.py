"""PNG and JPEG files: every mode, broken and huge ones; photos of digits; folders with a folder for each class."""

from __future__ import annotations

import struct
import sys
import zlib

import numpy as np
import pytest

import xnn
from xnn import data, layers, losses, optimizers
from xnn.data.digit_photos import as_mnist, read_digit
from xnn.data.images import read_image, size_and_channels
from xnn.errors import CorruptFileError, DataNotFoundError, MissingExtraError, OptionError

Image = pytest.importorskip("PIL.Image")

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
RED = np.zeros((4, 6, 3), np.uint8) + np.array([200, 0, 0], np.uint8)


def saved(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


class TestReading:
    def test_grey_and_colors(self, tmp_path):
        grey, red = saved(tmp_path / "g.png", GREY), saved(tmp_path / "r.png", RED)
        assert (size_and_channels(grey), size_and_channels(red)) == (((4, 6), 1), ((4, 6), 3))
        np.testing.assert_array_equal(read_image(grey, 1), GREY[None])
        np.testing.assert_array_equal(read_image(grey, 3), np.stack(3 * [GREY]))
        np.testing.assert_array_equal(read_image(red, 3), RED.transpose(2, 0, 1))
        assert (read_image(red, 1) == 60).all()  # 0.299 * 200
        assert read_image(red, 3, (2, 5)).shape == (3, 2, 5)

    def test_the_orientation_of_a_photo(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        path = saved(tmp_path / "turned.png", GREY, exif=exif)
        assert size_and_channels(path) == ((6, 4), 1)
        np.testing.assert_array_equal(read_image(path, 1)[0], np.rot90(GREY, -1))

    def test_what_is_transparent_is_white(self, tmp_path):
        pixels = np.zeros((4, 6, 4), np.uint8)
        pixels[:, 3:, 3] = 255
        expected = np.where(np.arange(6) < 3, 255, 0)
        for name, image in (
            ("rgba", Image.fromarray(pixels)),
            ("la", Image.fromarray(pixels).convert("LA")),
            ("palette", Image.fromarray(pixels).quantize(4)),
        ):
            image.save(tmp_path / f"{name}.png")
            for channels in (1, 3):
                got = read_image(tmp_path / f"{name}.png", channels)
                assert (got == expected).all(), name

    def test_sixteen_bits(self, tmp_path):
        path = saved(tmp_path / "deep.png", GREY.astype(np.uint16) * 256 + 255)
        assert size_and_channels(path)[1] == 1
        np.testing.assert_array_equal(read_image(path, 1)[0], GREY)

    def test_black_and_white_and_cmyk(self, tmp_path):
        np.testing.assert_array_equal(
            read_image(saved(tmp_path / "b.png", (GREY > 100)), 1)[0], np.where(GREY > 100, 255, 0)
        )
        path = saved(tmp_path / "c.jpg", np.repeat(np.repeat(RED, 4, 0), 4, 1), "CMYK", quality=95)
        assert np.abs(read_image(path, 3).astype(int)[:, 8, 8] - [200, 0, 0]).max() < 8

    def test_broken_files_are_named(self, tmp_path):
        whole = saved(
            tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
        ).read_bytes()
        bomb = bytearray(saved(tmp_path / "bomb.png", GREY).read_bytes())
        bomb[16:24] = struct.pack(">II", 60_000, 60_000)
        bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
        for name, content, said in (
            ("cut.png", whole[:2000], "broken"),
            ("bits.png", whole[:60] + bytes(60) + whole[120:], "broken"),
            ("empty.jpg", b"", "no PNG or JPEG"),
            ("text.jpg", b"hello", "no PNG or JPEG"),
            ("bomb.png", bytes(bomb), "pixels, too many"),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(CorruptFileError, match=said) as caught:
                read_image(tmp_path / name, 1)
            assert name in str(caught.value)
        Image.fromarray(GREY).save(
            tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(GREY.T[:4, :4])]
        )
        with pytest.raises(CorruptFileError, match=r"a\.png is animated"):
            read_image(tmp_path / "a.png", 1)
        Image.fromarray(GREY).save(tmp_path / "gif.png", format="GIF")
        with pytest.raises(CorruptFileError, match=r"gif\.png is no PNG"):
            read_image(tmp_path / "gif.png", 1)
        for path in (tmp_path / "none.png", tmp_path):
            with pytest.raises(DataNotFoundError):
                read_image(path, 1)

    def test_without_pillow_it_says_what_to_install(self, tmp_path, monkeypatch):
        path = saved(tmp_path / "g.png", GREY)
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(MissingExtraError, match=r'pip install "\.\[image\]"'):
            read_image(path, 1)


def seven(height=240, width=180, thick=16):
    """The ink of a drawn 7, from 0 to 1, in the upper left of a picture."""
    v, u = np.mgrid[:height, :width].astype(float)
    bar = (np.abs(v - 40) < thick / 2) & (u > 30) & (u < 110)
    slope = (np.abs((u - 110) + 0.5 * (v - 40)) < 0.56 * thick) & (v >= 40) & (v < 160)
    return (bar | slope).astype(float)


def lit(ink, paper=220.0, depth=0.8, slant=0.5):
    """A photo of ink on paper, under light that falls off to the right and below."""
    v, u = np.meshgrid(np.linspace(0, 1, ink.shape[0]), np.linspace(0, 1, ink.shape[1]), indexing="ij")
    noise = np.random.default_rng(0).normal(0, 2, ink.shape)
    return (
        (paper * (1 - slant * (0.7 * u + 0.3 * v)) * (1 - depth * ink) + noise).clip(0, 255).astype(np.uint8)
    )


PLAIN = lit(seven(), slant=0.0)


class TestDigits:
    @pytest.mark.parametrize(
        "photo",
        [lit(seven()), 255 - PLAIN, lit(seven(), depth=0.35), np.repeat(np.repeat(lit(seven()), 2, 0), 2, 1)],
        ids=["slanted light", "chalk on a board", "pencil", "large"],
    )
    def test_light_contrast_size_and_inversion_make_no_difference(self, photo):
        digit, plain = as_mnist(photo).astype(float), as_mnist(PLAIN).astype(float)
        assert digit.shape == (28, 28)
        assert np.abs(digit - plain).mean() < 6.0 < plain.mean()

    def test_the_box_and_the_centre_of_mass(self):
        digit = as_mnist(PLAIN)
        rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
        assert rows[-1] - rows[0] + 1 == 20
        assert 10 <= columns[-1] - columns[0] + 1 <= 16  # the aspect ratio is kept
        assert digit.max() > 240
        for axis in (0, 1):
            along = digit.sum(axis=1 - axis)
            assert (along * np.arange(28)).sum() / along.sum() == pytest.approx(14, abs=0.51)

    def test_thin_lines_do_not_fade(self):
        thin = as_mnist(lit(seven(thick=3)))
        assert np.quantile(thin[thin > 0], 0.7) > 150

    def test_specks_and_the_edge_of_the_paper_are_left_out(self):
        dirty = lit(seven(), slant=0.2)
        dirty[200:203, 150:153] = 30
        dirty[:, -6:] = 20
        assert np.abs(as_mnist(dirty).astype(float) - as_mnist(lit(seven(), slant=0.2))).mean() < 3.0

    @pytest.mark.parametrize("ink", [np.zeros((90, 90)), np.zeros((1, 1)), np.zeros((3, 200))])
    def test_an_empty_page_is_an_error_that_names_the_file(self, tmp_path, ink):
        with pytest.raises(CorruptFileError, match=r"page\.png: no digit stands out"):
            read_digit(saved(tmp_path / "page.png", lit(ink)))

    @pytest.mark.data
    def test_photos_of_mnist_come_back_and_are_recognized(self):
        x_train, y_train, _, _, x, y = data.load("mnist")
        x, y = x[:150], y[:150]
        back = []
        for image in x.reshape(-1, 28, 28):
            ink = np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC), float) / 255
            back.append(as_mnist(lit(ink)))
        back = np.array(back).reshape(len(x), -1)
        distance = np.abs(back.astype(float) - x).mean(axis=1)
        others = np.abs(x[1:].astype(float) - x[:-1]).mean(axis=1)
        assert np.mean(distance) < 0.35 * np.mean(others)
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(784, 32), layers.ReLU(), layers.Dense(32, 10), seed=0
        )
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.SGD(0.2))
        trainer.fit((x_train[:20_000], y_train[:20_000]), batch_size=64, progress=False)
        right, before = (np.mean(model.predict_classes(pixels) == y) for pixels in (back, x))
        assert before > 0.85
        assert right > before - 0.05


def folder_of(root, classes, count=5, size=(8, 6)):
    """A folder for each class, with images that hold the positions of class and image."""
    for position, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full(size, 100, np.uint8)
            pixels[0, :2] = position, number
            saved(root / name / f"{number}.png", pixels)
    return root


class TestFolders:
    def test_classes_are_folders_in_their_order(self, tmp_path):
        made = data.load(folder_of(tmp_path / "pets", ["dog", "cat"], 10))
        assert made.labels == ("cat", "dog")
        assert (made.sample_shape, made.scale, made.note, made.image) == ((8, 6), 1 / 255, "", (8, 6))
        assert [len(part) for part in made] == [16, 16, 2, 2, 2, 2]
        for x, y in ((made.x_train, made.y_train), (made.x_test, made.y_test)):
            assert (x[:, 0] == 1 - y).all()  # dog was written first
        again = data.load(tmp_path / "pets", seed=1)
        assert not np.array_equal(again.x_train, made.x_train)
        assert np.array_equal(data.load(tmp_path / "pets").x_train, made.x_train)

    @pytest.mark.parametrize(
        ("names", "labels"),
        [
            (["10", "9"], (9, 10)),
            (["1", "0"], ()),
            (["x10", "x9"], ("x9", "x10")),
            (["01", "2"], ("01", "2")),
        ],
    )
    def test_numbers_in_names(self, tmp_path, names, labels):
        assert data.load(folder_of(tmp_path / "f", names)).labels == labels

    def test_parts_of_their_own(self, tmp_path):
        for part, count in (("train", 6), ("test", 2)):
            folder_of(tmp_path / "f" / part, ["a", "b"], count)
        made = data.load(tmp_path / "f", split=(0.5, 0.25, 0.25))
        assert [len(part) for part in made] == [9, 9, 3, 3, 4, 4]
        folder_of(tmp_path / "f" / "validation", ["a", "b"], 1)
        assert [len(part) for part in data.load(tmp_path / "f")] == [12, 12, 2, 2, 4, 4]
        folder_of(tmp_path / "f" / "test", ["c"])
        with pytest.raises(CorruptFileError, match="a class 'c', and the training images have a, b"):
            data.load(tmp_path / "f")

    def test_train_without_test_is_refused(self, tmp_path):
        folder_of(tmp_path / "f" / "train", ["a", "b"])
        with pytest.raises(CorruptFileError, match="train, test and perhaps val"):
            data.load(tmp_path / "f")

    def test_sizes_and_colors_are_made_alike_and_told(self, tmp_path):
        root = folder_of(tmp_path / "f", ["a", "b"])
        saved(root / "a" / "x.jpg", RED)
        made = data.load(root)
        assert (made.sample_shape, made.x_train.shape[1]) == ((3, 64, 64), 3 * 64 * 64)
        assert "11 of 11 images were resized to 64x64 (they had 2 sizes from 4x6 to 8x6)" in made.note
        assert "some have colors" in made.note
        made = data.load(root, image_size=(8, 6))
        assert "1 of 11 images were resized to 8x6" in made.note

    def test_hidden_and_foreign_files_are_counted_and_broken_ones_named(self, tmp_path):
        root = folder_of(tmp_path / "f", ["a", "b"])
        for name in (".hidden.png", "notes.txt", "Thumbs.db"):
            (root / "a" / name).write_bytes(b"x")
        (root / ".git").mkdir()
        (root / "b" / "deeper").mkdir()
        assert (
            "skipped 4 other entries in the folders: 1 folders, 1 hidden, 2 neither PNG nor JPEG"
            in data.load(root).note
        )
        (root / "beside.png").write_bytes((root / "a" / "0.png").read_bytes())
        assert "skipped 5 other entries" in data.load(root).note
        assert "1 images beside the folders of classes" in data.load(root).note
        whole = (root / "a" / "0.png").read_bytes()
        (root / "a" / "one.png").write_bytes(whole[:-30])
        (root / "b" / "two.png").write_bytes(b"x")
        with pytest.raises(CorruptFileError, match=r"two\.png"):
            data.load(root)
        (root / "b" / "two.png").unlink()
        with pytest.raises(CorruptFileError, match=r"one\.png"):
            data.load(root)

    def test_options_that_do_not_fit_are_refused(self, tmp_path):
        root = folder_of(tmp_path / "f", ["a", "b"])
        with pytest.raises(OptionError, match="target is no option"):
            data.load(root, target="a")
        for size in ((0, 4), "64", 64, (8, 8, 3), (True, 8)):
            with pytest.raises(OptionError, match="image_size must be"):
                data.load(root, image_size=size)
        with pytest.raises(OptionError, match="image_size is no option"):
            data.load("synthetic", image_size=(8, 8))
        (root / "c").mkdir()
        with pytest.raises(CorruptFileError, match="c holds no PNG or JPEG"):
            data.load(root)
