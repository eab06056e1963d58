"""Tables: what is read is exactly what was written; everything else is refused in one line."""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kanpinn.errors import ConfigError, DataError
from kanpinn.io import csv_files, data_files
from kanpinn.io.scaling import AffineScaling, split
from kanpinn.io.tables import Table, read_points, read_table

DATA = np.random.default_rng(3).normal(size=(7, 3)) * [1.0, 1e-7, 1e12]


def write(folder: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv_text(header: str | None = "x,y,u", delimiter: str = ",", newline: str = "\n") -> str:
    lines = [] if header is None else [header.replace(",", delimiter)]
    lines += [delimiter.join(repr(float(value)) for value in row) for row in DATA]
    return newline.join(lines) + newline


def refused(path: Path, *parts: str, **options: Any) -> None:
    """The error is one line that names the file and contains the parts."""
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and len(message) < 600
    for part in parts:
        assert part in message, message
    assert isinstance(caught.value, ConfigError) and caught.value.exit_code == 2


# --- CSV that is read -----------------------------------------------------------------------------
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("given", [True, False])
def test_csv_is_read_to_the_last_bit(
    tmp_path: Path, delimiter: str, newline: str, given: bool
) -> None:
    path = write(tmp_path, csv_text(delimiter=delimiter, newline=newline))
    table = read_table(path, delimiter=delimiter if given else None)
    np.testing.assert_array_equal(table.inputs, DATA[:, :2])
    np.testing.assert_array_equal(table.outputs, DATA[:, 2:])
    assert table.inputs.dtype == table.outputs.dtype == np.float64
    assert table.input_names == ("x", "y") and table.output_names == ("u",)
    assert table.path == path


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ((), (), (("x", "y"), ("u",))),
        (("u", "x"), ("y",), (("u", "x"), ("y",))),
        ((), ("x",), (("y", "u"), ("x",))),
        ((), ("y", "u"), (("x",), ("y", "u"))),
        (("y",), (), (("y",), ("u",))),
        ("x", "u", (("x",), ("u",))),
    ],
)
def test_columns_are_chosen_by_name(
    tmp_path: Path, inputs: Any, outputs: Any, expected: tuple[Any, Any]
) -> None:
    table = read_table(write(tmp_path, csv_text()), inputs, outputs)
    assert (table.input_names, table.output_names) == expected
    for names, values in zip(expected, (table.inputs, table.outputs), strict=True):
        np.testing.assert_array_equal(values, DATA[:, ["xyu".index(name) for name in names]])


def test_csv_without_header_counts_columns_from_zero(tmp_path: Path) -> None:
    path = write(tmp_path, csv_text(header=None))
    table = read_table(path)
    assert table.input_names == ("0", "1") and table.output_names == ("2",)
    np.testing.assert_array_equal(table.inputs, DATA[:, :2])  # the first row is data
    table = read_table(path, [2], [0])
    np.testing.assert_array_equal(table.inputs[:, 0], DATA[:, 2])
    assert table.input_names == ("2",)


def test_csv_as_programs_write_it(tmp_path: Path) -> None:
    text = '\ufeff"price, EUR",  "a ""b""", t\r\n\r\n"1.5", +2 ,3e-1\r\n 4,"5",-.6\r\n,,\r\n'
    path = write(tmp_path, text.replace(",,\r\n", "\r\n"))
    table = read_table(path)
    assert table.input_names == ("price, EUR", 'a "b"') and table.output_names == ("t",)
    np.testing.assert_array_equal(table.inputs, [[1.5, 2], [4, 5]])
    np.testing.assert_array_equal(table.outputs, [[0.3], [-0.6]])


def test_csv_of_numpy_savetxt(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    np.savetxt(path, DATA, delimiter=";", header="x;y;u", fmt="%.17g")
    table = read_table(path)
    assert table.input_names == ("x", "y")
    np.testing.assert_array_equal(table.inputs, DATA[:, :2])


def test_columns_not_chosen_may_hold_anything(tmp_path: Path) -> None:
    path = write(tmp_path, "name,x,note,u\nfirst,1,,2\nsecond,3,NaN,4\n")
    table = read_table(path, ["x"], ["u"])
    np.testing.assert_array_equal(table.inputs, [[1], [3]])
    refused(path, "line 2, column 'name'", "'first' where a number is needed")


def test_numbers_near_the_end_of_the_range(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "x,u\n1.7e308,1.7e308\n-1.7e308,5e-324\n"))
    np.testing.assert_array_equal(table.inputs, [[1.7e308], [-1.7e308]])
    scaled = AffineScaling.fit_minmax(table.inputs).apply(table.inputs)
    np.testing.assert_array_equal(scaled, [[1], [-1]])


def test_long_csv_is_read_past_the_part_that_is_sampled(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(6000, 2))
    body = "".join(f"{a!r};{b!r}\n" for a, b in values.tolist())
    table = read_table(write(tmp_path, "x;u\n" + body))
    np.testing.assert_array_equal(np.hstack([table.inputs, table.outputs]), values)
    refused(write(tmp_path, "x;u\n" + body + "1;oops\n"), "line 6002, column 'u'", "'oops'")


# --- CSV that is refused ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x,u\n1,2\n3,\n", ["line 3, column 'u'", "missing (empty)"]),
        ("x,u\n1,2\n,\n", ["line 3, column 'x'", "missing"]),
        ("x,u\n1,2\n3,NA\n", ["line 3, column 'u'", "missing ('NA')"]),
        ("x,u\n1,2\n3,NaN\n", ["line 3, column 'u'", "missing ('NaN')"]),
        ("x,u\n1,2\n3,-inf\n", ["line 3, column 'u'", "'-inf'", "finite"]),
        ("x,u\n1,2\n3,1e999\n", ["line 3, column 'u'", "'1e999'", "finite"]),
        ("x,u\n1,2\n3,abc\n", ["line 3, column 'u'", "'abc' where a number is needed"]),
        ("x,u\n1,2\n3,1_000\n", ["line 3, column 'u'", "'1_000'"]),
        ('x,u\n1,2\n3,"3,5"\n', ["line 3, column 'u'", "'3,5'; use a point"]),
        ("x;u\n1,5;2,5\n3,5;1\n", ["line 2, column 'x'", "'1,5'; use a point"]),
        ("1,5;2,5\n3,5;1\n", ["line 1, column '0'", "'1,5'; use a point"]),
        ("x,u\n1,2\n\n3,4,5\n", ["line 4 has 3 values; 2 are needed"]),
        ("x,u,v\n1,2,3\n3,4\n", ["line 3 has 2 values; 3 are needed"]),
        ("x,x\n1,2\n3,4\n", ["line 1", "'x' appears twice"]),
        ("x,,u\n1,2,3\n3,4,4\n", ["line 1", "column 2 has no name"]),
        (",x,u\n0,2,3\n1,4,4\n", ["line 1", "column 1 has no name"]),
        ("x,2,u\n1,2,3\n3,4,4\n", ["line 1 mixes names and numbers", "'x'", "'2'"]),
        ("1,oops\n3,4\n", ["line 1 mixes names and numbers", "'oops'", "'1'"]),
        ("1,,3\n3,4,5\n", ["line 1, column '1'", "missing"]),
        ("x,u\n", ["0 row(s)", "at least 2"]),
        ("x,u\n1,2\n", ["1 row(s)", "at least 2"]),
        ("1,2\n", ["1 row(s)", "at least 2"]),
        ("x,y,u\n1,2,3\n1,3,4\n", ["column 'x' is constant (1 in all 2 rows)"]),
        ("x,u\n1,2\n2,2\n", ["column 'u' is constant"]),
        (
            "x\n1\n2\n",
            ["only one column found", "line 1: 'x'", "allowed delimiters: ',', ';', tab"],
        ),
        ("x y u\n1 2 3\n4 5 6\n", ["only one column", "spaces do not separate columns"]),
        ('x,u\n1,"2\n3,4\n', ["not valid CSV"]),
        ('x,u\n1,"2"3\n3,4\n', ["line 2", "not valid CSV"]),
        ("x,u\n1,2\n3," + "4" * 200_000 + "\n", ["line 3", "not valid CSV", "field limit"]),
        ("", ["is empty"]),
        ("\n \r\n\t\n", ["is empty"]),
        ("\ufeff", ["is empty"]),
    ],
    ids=lambda value: ascii(value[:24]) if isinstance(value, str) else "",
)
def test_bad_csv(tmp_path: Path, text: str, parts: list[str]) -> None:
    refused(write(tmp_path, text), *parts)


@pytest.mark.parametrize("right", [",", ";", "\t", "|"])
@pytest.mark.parametrize("wrong", [",", ";", "\t", "|"])
def test_wrong_delimiter(tmp_path: Path, right: str, wrong: str) -> None:
    path = write(tmp_path, csv_text(delimiter=right))
    if right != wrong:
        names = csv_files.DELIMITERS
        parts = ["only one column", f"with delimiter {names[wrong]}", f"to be {names[right]}"]
        refused(path, *parts, delimiter=wrong)


def test_tab_may_be_called_so(tmp_path: Path) -> None:
    """As messages call it; in YAML a tab needs quotes and a backslash."""
    table = read_table(write(tmp_path, csv_text(delimiter="\t")), delimiter="tab")
    np.testing.assert_array_equal(table.inputs, DATA[:, :2])


@pytest.mark.parametrize("delimiter", ["", " ", ",,", "x", "\n", '"'])
def test_delimiters_that_are_not_offered(tmp_path: Path, delimiter: str) -> None:
    parts = ["delimiter", "allowed: ',', ';', tab, '|'"]
    refused(write(tmp_path, csv_text()), *parts, delimiter=delimiter)


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 40,
        b"\x89PNG\r\n\x1a\n" + bytes(1000),
        b"x,u\n1,2\n\x00\x00,3\n",
        "x,u\n1,2\n".encode("utf-16"),
        "größe,u\n1,2\n3,4\n".encode("latin-1"),
        b"x,u\n" + b"1,2\n3,4\n" * 50_000 + b"\xff,1\n",
    ],
    ids=["bytes", "png", "zeros", "utf-16", "latin-1", "late"],
)
def test_binary_or_wrongly_encoded_csv(tmp_path: Path, content: bytes) -> None:
    refused(write(tmp_path, content), "not a CSV file in UTF-8")


def test_column_choices_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path, "price,size,rent\n1,2,3\n4,5,7\n")
    refused(path, "no column 'prize'", "did you mean 'price'?", "price, size", inputs=["prize"])
    refused(path, "no column 'volume'", "columns: price, size, rent", outputs=["volume"])
    refused(path, "'size' is an input and an output", inputs=["size"], outputs=["size"])
    refused(path, "'size' is chosen twice", inputs=["size", "size"])
    refused(path, "last column 'rent'", "choose outputs", inputs=["rent"])
    refused(path, "no inputs are left", outputs=["price", "size", "rent"])
    many = ",".join(f"column{k}" for k in range(500))
    refused(write(tmp_path, many + "\n"), "and 488 more", inputs=["x"])


# --- files of any format --------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["data.csv", "data.npz", "data.h5"])
def test_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, "does not exist")
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "is a folder")
    refused(write(tmp_path, b"", "empty" + name), "is empty")


def test_other_files(tmp_path: Path) -> None:
    refused(write(tmp_path, "x,u\n1,2\n", "data.xlsx"), "ending '.xlsx'", ".csv", ".npz", ".h5")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "is not an ordinary file")
    path = write(tmp_path, csv_text())
    refused(path, "group 'a'", "HDF5 only", group="a")
    np.savez(tmp_path / "data.npz", x=DATA[:, 0])
    refused(tmp_path / "data.npz", "delimiter ','", "CSV only", delimiter=",")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, csv_text())
    path.chmod(0)
    refused(path, "cannot be read")


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "MAX_BYTES", 50)
    refused(write(tmp_path, csv_text()), "bytes; at most 50")
    for path in array_files(tmp_path, x=DATA[:, 0], u=DATA[:, 1]):
        refused(path, "array 'x'", "bytes; at most 50", inputs=["x"], outputs=["u"])


# --- NPZ and HDF5 -------------------------------------------------------------------------------
def array_files(folder: Path, **arrays: Any) -> list[Path]:
    np.savez(folder / "data.npz", **arrays)
    with h5py.File(folder / "data.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return [folder / "data.npz", folder / "data.h5"]


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f8", "i4", "u2", "?"])
def test_arrays_are_columns(tmp_path: Path, dtype: str) -> None:
    grid = (np.arange(20).reshape(5, 4) * 7 % 11).astype(dtype)
    grid[0] = 0
    u = np.array([0, 1, 0, 1, 1]).astype(dtype)
    for path in array_files(tmp_path, A=grid, u=u, column=u[:, None], scalar=1.0, text="a"):
        table = read_table(path, ["A.2", "A.0"], ["u"])
        assert table.input_names == ("A.2", "A.0") and table.output_names == ("u",)
        np.testing.assert_array_equal(table.inputs, grid[:, [2, 0]].astype(float))
        np.testing.assert_array_equal(table.outputs, u[:, None].astype(float))
        assert table.inputs.dtype == np.float64 and table.inputs.dtype.isnative
        table = read_table(path, ["A"], ["column"])
        assert table.input_names == ("A.0", "A.1", "A.2", "A.3")
        assert table.output_names == ("column",)
        np.testing.assert_array_equal(table.inputs, grid.astype(float))


def test_a_name_with_a_point_is_found_before_a_column(tmp_path: Path) -> None:
    arrays = {"a": DATA[:, :2], "a.1": DATA[:, 2]}
    for path in array_files(tmp_path, **arrays):
        table = read_table(path, ["a.1"], ["a.0"])
        np.testing.assert_array_equal(table.inputs[:, 0], DATA[:, 2])


def test_hdf5_groups(tmp_path: Path) -> None:
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["run/fields/u"] = DATA[:, 2]
        file.create_dataset("run/points", data=DATA[:, :2], chunks=(2, 1), compression="gzip")
    for group, prefix in ((None, "run/"), ("run", ""), ("/run/", "")):
        table = read_table(path, [f"{prefix}points"], [f"{prefix}fields/u"], group=group)
        np.testing.assert_array_equal(table.inputs, DATA[:, :2])
        assert table.output_names == (f"{prefix}fields/u",)
    refused(path, "no group 'walk'", group="walk", inputs=["a"], outputs=["b"])
    refused(path, "no group 'run/points'", group="run/points", inputs=["a"], outputs=["b"])
    parts = ["no column 'run/point'", "did you mean 'run/points'?", "run/fields/u"]
    refused(path, *parts, inputs=["run/point"], outputs=["run/fields/u"])


def test_bad_arrays(tmp_path: Path) -> None:
    spoiled = DATA.copy()
    spoiled[4, 1] = np.nan
    arrays = {
        "x": DATA[:, 0],
        "A": DATA,
        "u": DATA[:, 2],
        "short": DATA[:3, 0],
        "one": DATA[:1, 0],
        "one_too": DATA[:1, 1],
        "none": DATA[:0, 0],
        "flat": np.full(7, 3.5),
        "spoiled": spoiled,
        "huge": np.full(7, np.inf),
        "cube": np.zeros((2, 2, 2)),
        "thin": np.zeros((7, 0)),
        "scalar": 1.0,
        "complex": DATA[:, 0] + 1j,
        "text": np.array([b"a"] * 7),
    }
    cases: list[tuple[str, str, list[str]]] = [
        ("short", "u", ["column 'short' has 3 rows but 'u' has 7"]),
        ("one", "one_too", ["1 row(s)", "at least 2"]),
        ("none", "u", ["'none' has 0 rows but"]),
        ("flat", "u", ["column 'flat' is constant (3.5 in all 7 rows)"]),
        ("spoiled", "u", ["array 'spoiled': row 4, column 1", "nan"]),
        ("huge", "u", ["array 'huge': row 0", "inf"]),
        ("cube", "u", ["array 'cube' has the shape (2, 2, 2)"]),
        ("thin", "u", ["array 'thin' has the shape (7, 0)"]),
        ("scalar", "u", ["array 'scalar' has the shape ()"]),
        ("complex", "u", ["array 'complex' holds complex128"]),
        ("text", "u", ["array 'text' holds", "S1"]),
        ("A.3", "u", ["no column 'A.3'", "3 (from 0)"]),
        ("A.-1", "u", ["no column 'A.-1'"]),
        ("A.x", "u", ["no column 'A.x'"]),
        ("A.0000000001" + "0" * 5000, "u", ["no column"]),
        ("B.0", "u", ["no column 'B.0'"]),
        ("X", "u", ["no column 'X'", "columns: "]),
        ("u", "u", ["'u' is an input and an output"]),
        ("A", "A.1", ["'A.1' is an input and an output"]),
    ]
    for path in array_files(tmp_path, **arrays):
        for name, output, parts in cases:
            shown = [part for part in parts if len(name) < 100]
            with pytest.raises(DataError) as caught:
                read_table(path, [name], [output])
            assert all(part in str(caught.value) for part in shown), str(caught.value)
        refused(path, "'A.1' is chosen twice", inputs=["A", "A.1"], outputs=["u"])
        refused(path, "both inputs and outputs to be chosen", "columns: ")
        refused(path, "both inputs and outputs", inputs=["x"])


def test_files_without_arrays(tmp_path: Path) -> None:
    for path in array_files(tmp_path):
        refused(path, "holds no arrays", inputs=["x"], outputs=["u"])


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    np.savez(tmp_path / "data.npz", x=np.array([Bomb(trace), 1], dtype=object), u=DATA[:2, 0])
    refused(tmp_path / "data.npz", "array 'x' holds Python objects", inputs=["x"], outputs=["u"])
    assert not trace.exists()
    table = DATA[:2, :2]
    np.savez(tmp_path / "data.npz", x=np.array([Bomb(trace)], dtype=object), A=table)
    np.testing.assert_array_equal(
        read_table(tmp_path / "data.npz", ["A.0"], ["A.1"]).inputs[:, 0], table[:, 0]
    )
    assert not trace.exists()


def test_hdf5_text_and_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["u"] = DATA[:, 0]
        file["words"] = ["a"] * 7
        file["records"] = np.zeros(7, dtype=[("a", "f8"), ("b", "i4")])
        file.create_dataset("huge", shape=(10**13,), dtype="f8", chunks=(1000,))
        file["empty"] = h5py.Empty("f8")
        file["gone"] = h5py.SoftLink("/nowhere")
    for name in ("words", "records"):
        refused(path, f"array '{name}' holds", "not numbers", inputs=[name], outputs=["u"])
    refused(path, "array 'huge' has", "at most", inputs=["huge"], outputs=["u"])
    refused(path, "array 'empty'", inputs=["empty"], outputs=["u"])
    refused(path, "no column 'gone'", inputs=["gone"], outputs=["u"])


@pytest.mark.parametrize("name", ["data.npz", "data.h5"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).normal(size=(400, 2))
    paths = array_files(tmp_path, x=noise[:, 0], u=noise[:, 1])
    whole = next(path for path in paths if path.name == name).read_bytes()
    options = {"inputs": ["x"], "outputs": ["u"]}
    for length in (1, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        refused(write(tmp_path, whole[:length], name), "damaged or truncated", **options)
    refused(write(tmp_path, "x,u\n1,2\n3,4\n", name), "damaged or truncated", **options)
    refused(write(tmp_path, bytes(1000), name), "damaged or truncated", **options)
    # A flipped byte is either noticed in one line, or lies where nothing is read.
    for position in np.random.default_rng(1).integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path = write(tmp_path, bytes(damaged), name)
        try:
            table = read_table(path, ["x"], ["u"])
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert table.inputs.shape == table.outputs.shape


def test_npz_with_other_content(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    buffer = io.BytesIO()
    np.save(buffer, DATA)
    path.write_bytes(buffer.getvalue())
    refused(path, "one array without a name", inputs=["x"], outputs=["u"])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "not an array")
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (1")
    refused(path, "array 'x'", "damaged", inputs=["x"], outputs=["x"])
    refused(path, "array 'notes.txt' holds bytes", inputs=["notes.txt"], outputs=["x"])


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2.5,), }",
        "{'descr': ',,', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f8', 'shape': (1",
        "(" * 8000,
        "-" * 9000 + "1",
        "open('x')",
    ],
    ids=lambda header: header[:60],
)
def test_npz_with_a_header_that_is_not_to_be_trusted(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little")
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content + header.encode() + b"\n" + bytes(24))
    refused(path, "array 'x' is damaged", inputs=["x"], outputs=["x"])


# --- points -----------------------------------------------------------------------------------
POINTS = DATA[:, [2, 0]]


@pytest.mark.parametrize(
    "text",
    [
        csv_text("y,note,x"),
        csv_text('"y","a, b",x'),
        csv_text("# y\tnote\tx", delimiter="\t"),
        csv_text("y,note,x").replace("\n", ",\n").replace("x,", "x,extra"),
    ],
)
@pytest.mark.parametrize("name", ["points.csv", "points.TXT"])
def test_points_by_the_names_of_columns(tmp_path: Path, name: str, text: str) -> None:
    found = read_points(write(tmp_path, text, name), ("x", "y"))
    np.testing.assert_array_equal(found, DATA[:, [2, 0]])


def test_points_without_names(tmp_path: Path) -> None:
    found = read_points(write(tmp_path, csv_text(None)), ("a", "b", "c"))
    np.testing.assert_array_equal(found, DATA)
    path = write(tmp_path, "0.25\n-1\n")
    np.testing.assert_array_equal(read_points(path, ("x",)), [[0.25], [-1.0]])
    np.testing.assert_array_equal(read_points(write(tmp_path, "x\n3\n"), ("x",)), [[3.0]])


def test_points_of_arrays(tmp_path: Path) -> None:
    for path in array_files(tmp_path, y=DATA[:, 0], other=["a"], x=DATA[:, 2]):
        np.testing.assert_array_equal(read_points(path, ("x", "y")), POINTS)
    for path in array_files(tmp_path, any=POINTS.astype("f4")):
        np.testing.assert_array_equal(read_points(path, ("x", "y")), POINTS.astype("f4"))
    for path in array_files(tmp_path, x=POINTS[:1]):
        np.testing.assert_array_equal(read_points(path, ("x", "y")), POINTS[:1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x,x,y\n1,2,3\n", ["column name 'x' appears twice"]),
        ("x,z\n1,2\n", ["no column 'y'", "columns: x, z"]),
        ("1,2,3\n", ["3 columns and no header", "2 columns (x, y)"]),
        ("x\n1\n", ["only one column", "the columns x, y are needed"]),
        ("1 2\n3 4\n", ["only one column", "spaces do not separate columns"]),
        ("x,y\n", ["0 row(s)", "at least 1"]),
        ("x,y\n1,\n", ["line 2, column 'y'", "missing"]),
        ("x,y\n1,1e999\n", ["line 2, column 'y'", "finite"]),
        ("x,y\n1,1_0\n", ["line 2, column 'y'", "'1_0'"]),
    ],
)
def test_bad_points(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_points(path, ("x", "y"))
    assert all(part in str(caught.value) for part in [path.name, *parts]), str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_points_of_arrays(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x": DATA[:, 0], "z": DATA[:, 1]}, "found the arrays x, z; allowed: x, y, each"),
        ({"x": DATA}, r"found the arrays x; .* a single array \(n, 2\)"),
        ({"x": DATA[:, 0], "y": DATA[:3, 0]}, "column 'x' has 7 rows but 'y' has 3"),
        ({"x": DATA[:0, 0], "y": DATA[:0, 0]}, "0 row"),
        ({"x": DATA[:, 0], "y": np.full(7, np.nan)}, "array 'y': row 0"),
        ({"x": DATA[:, 0], "y": ["a"] * 7}, "not numbers"),
        ({}, "holds no arrays"),
    ]
    for arrays, message in cases:
        for path in array_files(tmp_path, **arrays):
            with pytest.raises(DataError, match=message):
                read_points(path, ("x", "y"))


def test_damaged_points(tmp_path: Path) -> None:
    """A compressed archive: zlib has errors of its own."""
    np.savez_compressed(tmp_path / "points.npz", x=DATA[:, 0], y=np.arange(7.0))
    whole = (tmp_path / "points.npz").read_bytes()
    refusals = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path = write(tmp_path, bytes(damaged), "points.npz")
        try:
            assert read_points(path, ("x", "y")).shape == (7, 2)
        except DataError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > len(whole) // 2


def test_table_is_frozen(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, csv_text()))
    assert isinstance(table, Table)
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.inputs = DATA  # type: ignore[misc]


# --- split ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("n", "fractions", "sizes"),
    [
        (100, (0.7, 0.15, 0.15), (70, 15, 15)),
        (3, (0.4, 0.3, 0.3), (1, 1, 1)),
        (11, (0.8, 0.1, 0.1), (9, 1, 1)),
        (1000, (0.1, 0.2, 0.7), (100, 200, 700)),
    ],
)
def test_split_is_a_partition(n: int, fractions: Any, sizes: tuple[int, ...]) -> None:
    parts = split(n, fractions, seed=5)
    assert tuple(len(part) for part in parts) == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    for part, again in zip(parts, split(n, fractions, seed=5), strict=True):
        assert part.dtype == np.int64 and (np.diff(part) > 0).all()
        np.testing.assert_array_equal(part, again)


# A change here would change the test rows of every run made before.
SPLIT_OF_8 = [[0, 2, 5, 6], [3, 4], [1, 7]]


def test_split_depends_on_the_seed_and_stays_as_it_is() -> None:
    assert [part.tolist() for part in split(8, (0.5, 0.25, 0.25), seed=0)] == SPLIT_OF_8
    tests = {tuple(split(50, seed=seed)[2]) for seed in range(20)}
    assert len(tests) == 20


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("skipped", [0, 1, 200])
def test_split_has_nothing_to_do_with_a_users_own_numbers(seed: int, skipped: int) -> None:
    """Data made with NumPy's generator of the same seed: all parts spread over the same range."""
    generator = np.random.default_rng(seed)
    generator.random(skipped)
    x = generator.uniform(0, 1, 200)
    for part in split(200, seed=seed):
        assert abs(x[part].mean() - x.mean()) < 4.5 * x.std() / len(part) ** 0.5
        assert x[part].min() < 0.2 and x[part].max() > 0.8


def test_split_is_uniform() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        counts[split(10, (0.6, 0.2, 0.2), seed)[2]] += 1
    np.testing.assert_allclose(counts / 2000, 0.2, atol=4.5 * (0.2 * 0.8 / 2000) ** 0.5)


@pytest.mark.parametrize(
    ("n", "fractions", "seed", "part"),
    [
        (2, (0.4, 0.3, 0.3), 0, "2 rows leave none for training"),
        (5, (0.9, 0.05, 0.05), 0, "5 rows leave none for validation"),
        (0, (0.4, 0.3, 0.3), 0, "0 rows leave none for training"),
        (100, (0.7, 0.3), 0, "three fractions"),
        (100, (0.7, 0.3, 0.0), 0, "three fractions between 0 and 1"),
        (100, (1.2, -0.1, -0.1), 0, "three fractions between 0 and 1"),
        (100, (0.7, 0.2, float("nan")), 0, "three fractions between 0 and 1"),
        (100, (0.7, 0.2, 0.2), 0, "sum to 1.1, not 1"),
        (100, (0.7, 0.2, 0.1), -1, "seed is -1"),
    ],
)
def test_splits_that_cannot_be_made(n: int, fractions: Any, seed: int, part: str) -> None:
    with pytest.raises(DataError, match=part):
        split(n, fractions, seed)


# --- scaling -----------------------------------------------------------------------------------
def test_minmax_reaches_both_ends() -> None:
    scaling = AffineScaling.fit_minmax(DATA, -1, 1)
    scaled = scaling.apply(DATA)
    np.testing.assert_allclose(scaled.min(axis=0), -1, rtol=1e-14)
    np.testing.assert_allclose(scaled.max(axis=0), 1, rtol=1e-14)
    expected = 2 * (DATA - DATA.min(0)) / np.ptp(DATA, axis=0) - 1
    np.testing.assert_allclose(scaled, expected, atol=1e-14)
    bounds = AffineScaling.fit_minmax(DATA, [0, -3, 5], [1, 4, 6]).apply(DATA)
    np.testing.assert_allclose(bounds.min(axis=0), [0, -3, 5], atol=1e-14)
    np.testing.assert_allclose(bounds.max(axis=0), [1, 4, 6], rtol=1e-14)


@pytest.mark.parametrize(("lower", "upper"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 0.7), (2.0, 9.0)])
def test_minmax_never_leaves_the_interval(lower: float, upper: float) -> None:
    rng = np.random.default_rng(11)
    for offset in (0.0, 1.0, 1e3, 1e9, 1e15):
        values = offset + rng.normal(size=(5, 300))
        values[0], values[1] = offset, offset + 1 + rng.random(300)
        scaled = AffineScaling.fit_minmax(values, lower, upper).apply(values)
        assert scaled.min() >= lower and scaled.max() <= upper
        tolerance = 1e-14 + 8 * np.finfo(float).eps * offset
        np.testing.assert_allclose(np.ptp(scaled, axis=0), upper - lower, rtol=tolerance)


def test_standard_scaling() -> None:
    scaled = AffineScaling.fit_standard(DATA).apply(DATA)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose((scaled**2).mean(axis=0), 1, rtol=1e-14)


def test_scaling_is_undone() -> None:
    for scaling in (AffineScaling.fit_minmax(DATA), AffineScaling.fit_standard(DATA)):
        again = AffineScaling(scaling.shift.tolist(), scaling.scale.tolist())
        points = np.random.default_rng(2).normal(size=(4, 5, 3)) * DATA.std(axis=0)
        np.testing.assert_allclose(
            again.invert(scaling.apply(points)),
            points,
            rtol=1e-13,
            atol=1e-14 * DATA.std(axis=0).min(),
        )
        np.testing.assert_array_equal(scaling.invert(np.zeros(3)), scaling.shift)


def test_scaling_does_not_share_memory() -> None:
    shift = np.zeros(2)
    scaling = AffineScaling(shift, np.ones(2))
    shift[0] = 5
    assert scaling.shift[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        scaling.scale[0] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        scaling.shift = shift  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shift", "scale", "part"),
    [
        ([0, 0], [1], "must both be"),
        (0, 1, "must both be"),
        ([0], [0], "not be zero"),
        ([np.nan], [1], "finite"),
        ([0], [np.inf], "finite"),
    ],
)
def test_scalings_that_cannot_be(shift: Any, scale: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        AffineScaling(shift, scale)


@pytest.mark.parametrize("fit", [AffineScaling.fit_minmax, AffineScaling.fit_standard])
@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([[1, 2], [3, 2]], "column 'b' is constant"),
        ([[1, 2], [3, np.nan]], "column 'b' holds values that are not finite"),
        ([[1, 2]], "n >= 2"),
        ([1, 2, 3], r"\(n, k\)"),
        ([[0, 0], [5e-324, 1]], "scale must not be zero"),
    ],
)
def test_values_that_cannot_be_scaled(fit: Any, values: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        fit(values, names=["a", "b"])


def test_bounds_and_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="must be less than upper"):
        AffineScaling.fit_minmax(DATA, 1.0, 1.0)
    scaling = AffineScaling.fit_minmax(DATA)
    for values in (1.0, np.ones(2), np.ones((3, 1))):
        with pytest.raises(DataError, match="must have 3 columns"):
            scaling.apply(values)
        with pytest.raises(DataError, match="must have 3 columns"):
            scaling.invert(values)
