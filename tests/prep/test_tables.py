"""CSV and TSV: the rows that pandas finds, and what is said of those that are none."""

import csv
import io
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from prep.readers.documents import Piece
from prep.readers.formats import estimate_text_bytes, read_documents, split_file
from prep.text.filters import Filter
from tests.reading import read, read_skipping

PARTS = ["a", "word", " ", ",", "\t", '"', '""', "\n", "\r\n", "\r", "café", "你好", ";", "'", "\\"]


def make_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose fields hold whatever a table has to quote."""
    generator = random.Random(seed)

    def make_field() -> str:
        return "".join(generator.choices(PARTS, k=generator.randrange(12)))

    return [{"id": str(i), "content": make_field(), "url": make_field()} for i in range(count)]


def write_rows(path: Path, rows: list[dict[str, str]], **dialect: object) -> Path:
    """Write them with the csv module."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **dialect)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("quoting", "line_end"),
    [
        # With another end, the module of some versions leaves "\r" without quotes.
        (csv.QUOTE_MINIMAL, "\r\n"),
        *((csv.QUOTE_ALL, line_end) for line_end in ("\n", "\r\n", "\r")),
        (csv.QUOTE_NONNUMERIC, "\n"),
    ],
)
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_the_rows_are_those_of_pandas(
    tmp_path: Path, suffix: str, delimiter: str, quoting: int, line_end: str
) -> None:
    rows = make_rows(1500, seed=quoting)
    path = tmp_path / f"a{suffix}"
    write_rows(path, rows, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    table = pd.read_csv(path, sep=delimiter, dtype=str, na_filter=False)
    found = read(path)
    assert found.texts == table["content"].tolist() == [row["content"] for row in rows]
    assert found.urls == table["url"].tolist()
    assert found.rows == table.index.tolist()
    assert not any(found.repaired)
    # pandas writes as well.
    table.to_csv(path, sep=delimiter, index=False, lineterminator="\r\n")
    assert read(path) == found


def test_marks_blank_lines_nul_and_a_last_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbf"content",n\r\n\r\n"a\0 ""b""",1\r\n\n,2\n" ",3\n\xef\xbb\xbfc,4'
    )
    found = read(path)
    assert found.texts == ['a\0 "b"', "", " ", "\ufeffc"]
    assert (found.rows, found.urls) == ([0, 1, 2, 3], [None] * 4)
    path.write_bytes(b'content\n""\n\nb"c\n')  # A column alone: a blank line is no empty text.
    assert read(path).texts == ["", 'b"c']


def test_what_is_not_utf_8_is_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    fields = [b"caf\xe9", b"\xed\xa0\x80", "own �, 🙂".encode(), b"\xff,\n\xfe", b"fine"]
    lines = [b'"%s",\xff' % field for field in fields]
    path.write_bytes(b"content,url\n" + b"\n".join(lines) + b"\n")
    found = read(path)
    assert found.texts == [field.decode("utf-8", "replace") for field in fields]
    assert found.repaired == [True, True, False, True, False]
    assert found.urls == ["�"] * 5
    path.write_bytes("content\ntext\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a.csv: is in UTF-16; convert it with iconv"):
        read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.csv: is empty; expected a first line with the names of the columns"),
        (b"\n\n", "a.csv: is empty; expected a first line"),
        (
            b"id,text\n1,a\n",
            "no column 'content' in its first line; the columns are id, text; name",
        ),
        (
            b"id;content\n1;a\n",
            "no column 'content' in its first line; the columns are id;content;",
        ),
        (b"content,id,content\n", "a.csv: has 2 columns 'content'; expected one; rename the other"),
        (
            b'content\nok\n\n"a"b\n',
            r"a.csv, row 1, line 4: not CSV \(',' expected after '\"'\); a ",
        ),
        (b'content,n\nok,1\n"open,2\nx,3\n', r"row 1, line 3: not CSV \(unexpected end of data\)"),
        (b'content,n\n"a\nb",1\nc\n', "a.csv, row 1, line 4: has 1 fields; expected 2, as in the"),
        (
            b"content,n\nc,1,2\n",
            "a.csv, row 0, line 2: has 3 fields; expected 2, as in the first l",
        ),
        (b'"content\n', "a.csv, line 1: not CSV"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_bad_row_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'content,n\na,1\n"b"c,2\nd\n\ne,4,5\n"f\ng",6\n"he said \\"hi\\"",7\nh,8\n')
    texts, bad = read_skipping(path)
    assert texts == ["a", "f\ng", "h"]
    assert sorted(bad) == [1, 2, 3, 5]
    assert bad[2] == (
        f"{path}, row 2, line 4: has 1 fields; expected 2, as in the first line; put fields with "
        "the separator, quotes or line ends in them into quotes"
    )
    assert "a quote inside a quoted field is written twice" in bad[5]


def test_a_quote_without_an_end_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'content\na\n"b\n' + b"c\n" * 5000)
    with pytest.raises(ValueError, match=r"row 1, line 3: not CSV \(unexpected end of data\); a q"):
        read_skipping(path)
    monkeypatch.setattr("prep.readers.tables.MAX_ROW_CHARACTERS", 1 << 12)
    with pytest.raises(
        ValueError, match=r"row 1, line 3: a row of more than 0 Mi characters, as a"
    ):
        read_skipping(path)
    path.write_bytes(b"content\na\n" + b"c" * 5000)
    with pytest.raises(
        ValueError, match=r"row 1, line 3: a row of more than 0 Mi characters, as a"
    ):
        read(path)


def test_a_field_of_20_mb_is_read(tmp_path: Path) -> None:
    text = "0123456789, \n" * 1_600_000
    path = write_rows(tmp_path / "a.csv", [{"content": text}, {"content": "b"}])
    assert read(path).texts == [text, "b"]


def test_other_columns_are_text_for_where(tmp_path: Path) -> None:
    rows = [{"content": f"t{i}", "score": str(i), "day": f"2020-01-{i + 1:02}"} for i in range(20)]
    rows[3]["score"] = ""
    path = write_rows(tmp_path / "a.csv", rows)
    chosen = Filter(where=["score>=2", "day<2020-01-06"])
    [batch] = read_documents(Piece(str(path), "a.csv"), "content", columns=chosen.columns)
    assert batch.columns["score"].type == pa.large_string()
    assert batch.filter(chosen.choose(batch).kept).texts.tolist() == ["t2", "t4"]
    with pytest.raises(ValueError, match=r"a.csv: no column 'scores'; the columns are content, sc"):
        read(path, columns=("scores",))


def test_a_table_is_one_piece_and_about_as_large_as_its_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", make_rows(100, seed=1))
    assert split_file(path, "a.csv", 100) == [Piece(str(path), "a.csv")]
    assert estimate_text_bytes(path, "content") == path.stat().st_size


def test_names_of_columns_are_read_as_the_fields_are(tmp_path: Path) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(['a "name"', "two\nlines", "café"])
    path = tmp_path / "a.csv"
    path.write_text(buffer.getvalue() + "1,2,3\r\n", newline="")
    for name, text in (('a "name"', "1"), ("two\nlines", "2"), ("café", "3")):
        assert read(path, name).texts == [text]
