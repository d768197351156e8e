"""``convoy predict`` on a fake server: what is read, what is printed, what is waited for."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from convoy.cli import images as cli_images
from convoy.cli import predict
from convoy.cli.answers import Answer, Table
from convoy.cli.images import Found, Sources, Watch, walk
from convoy.contract.errors import ClientError, ServerFailureError, UnavailableError
from convoy.serving.client import Candidate, Prediction
from convoy.serving.client._call import Infer
from convoy.serving.client.testing import FakeModel, FakeTransport

Program = Callable[..., tuple[int, str, str]]
SECRET = "Bearer-hunter2"
KEYS = ["image", "label", "index", "probability", "top_k", "model_name", "model_version", "error"]


def write_image(path: Path, index: int) -> Path:
    """An image whose class the fake foretells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), index).save(path)
    return path


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), index).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, index in (("zero/a.png", 0), ("one/b.png", 1), ("two/c.png", 0)):
        write_image(tmp_path / "set" / name, index)
    return tmp_path / "set"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def names_of(out: str) -> list[str]:
    return [Path(line["image"]).name for line in lines_of(out)]


def infers(fake: FakeTransport) -> list[Infer]:
    return [call for call in fake.calls if isinstance(call, Infer)]


# What is printed


def test_predict_prints_label_probability_and_version(program: Program, folder: Path) -> None:
    code, out, err = program("predict", "digits", folder / "one" / "b.png")
    assert (code, err) == (0, "")
    header, row = out.strip().splitlines()
    assert header.split() == ["image", "label", "probability", "version"]
    assert row.split()[1:3] == ["one", "80.00%"]
    assert row.split()[-1] == "3"


def test_predict_lists_the_likeliest_classes(program: Program, folder: Path) -> None:
    _, out, _ = program("predict", "digits", folder / "one" / "b.png", folder / "zero" / "a.png", "--top-k", "2")
    assert [word for line in out.splitlines()[1:] for word in line.split() if word in ("zero", "one", "two")] == [
        "one",
        "zero",
        "zero",
        "one",
    ]


def test_predict_answers_the_readable_images_and_reports_the_others(program: Program, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    images = (bad, folder / "one" / "b.png", tmp_path / "gone.png")
    code, out, err = program("predict", "digits", *images)
    assert code == 1
    assert "80.00%" in out
    assert "bad.png: expected an image" in err
    assert "gone.png: no such file" in err
    assert "2 of 3 inputs could not be read" in err


def test_predict_gives_a_json_line_an_image(program: Program, folder: Path, tmp_path: Path) -> None:
    images = (folder / "one" / "b.png", tmp_path / "gone.png")
    code, out, err = program("predict", "digits", *images, "--json", "--top-k", "3")
    assert code == 1
    good, bad = lines_of(out)
    assert list(good) == list(bad) == KEYS
    assert [good["image"], bad["image"]] == [str(image) for image in images]
    assert (good["label"], good["index"], good["model_name"], good["model_version"], good["error"]) == (
        "one",
        1,
        "digits",
        "3",
        None,
    )
    assert good["probability"] == pytest.approx(0.8)
    assert [candidate["label"] for candidate in good["top_k"]] == ["one", "zero", "two"]
    assert (bad["label"], bad["top_k"], bad["model_name"], bad["model_version"]) == (None, None, "digits", None)
    assert "no such file" in bad["error"]
    assert err == "convoy: error: 1 of 2 inputs could not be read.\n"


def test_predict_takes_labels_and_names_as_they_are(program: Program, tmp_path: Path, fake: FakeTransport) -> None:
    model = fake.models["digits"]
    parameter = model.config["parameters"]["convoy_interface"]
    parameter["string_value"] = parameter["string_value"].replace('"zero"', '"[red]"')
    _, out, _ = program("predict", "digits", write_image(tmp_path / "[bold].png", 0))
    assert "[red]" in out
    assert "[bold].png" in out


def test_predict_with_unreadable_images_only_prints_no_table(program: Program, tmp_path: Path) -> None:
    code, out, err = program("predict", "digits", tmp_path / "gone.png")
    assert (code, out) == (1, "")
    assert "1 of 1 input could not be read" in err


def test_names_that_would_move_the_cursor_or_are_no_text_are_shown_escaped(program: Program, tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a\x1b[31m\nb.png", 0)
    os.link(tmp_path / "set" / "a\x1b[31m\nb.png", os.fsencode(tmp_path) + b"/set/c\xff.png")
    code, out, _ = program("predict", "digits", tmp_path / "set")
    assert code == 0
    assert r"a\x1b[31m\nb.png" in out
    assert r"c\xff.png" in out
    assert len(out.splitlines()) == 3
    assert names_of(program("predict", "digits", tmp_path / "set", "--json")[1]) == ["a\x1b[31m\nb.png", r"c\xff.png"]


def answer(name: str, label: str = "one", version: str = "3") -> Answer:
    top = (Candidate(label, 1, 0.8),)
    return Answer(Found(name, name), Prediction(label, 1, 0.8, top, "digits", version), None)


def shown(monkeypatch: pytest.MonkeyPatch, width: int, *batches: list[Answer]) -> list[str]:
    screen = io.StringIO()
    monkeypatch.setattr("convoy.cli.answers.stdout_console", lambda: Console(file=screen, width=width, highlight=False))
    table = Table()
    for batch in batches:
        table.show(batch)
    return screen.getvalue().splitlines()


def test_rows_that_come_later_stand_under_the_same_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    header, first, second, third = shown(
        monkeypatch, 200, [answer("longer.png")], [answer("a.png")], [answer("much_longer.png", "uno")]
    )
    assert header.split() == ["image", "label", "probability", "version"]
    assert header.index("label") == first.index("one") == second.index("one")
    assert third.split()[:3] == ["much_longer.png", "uno", "80.00%"]
    assert first.count("█") == second.count("█") == third.count("█") == 16


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_row_is_wider_than_the_terminal_and_nothing_of_a_name_is_lost(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    name = "folder/" + "".join(str(i % 10) for i in range(90)) + ".png"
    lines = shown(monkeypatch, width, [answer(name, "a label of several words")])
    assert max(map(len, lines)) <= width
    if width >= 60:
        assert lines[0].split() == ["image", "label", "probability", "version"]
        folded = "".join(line.split()[0] for line in lines[1:] if not line.startswith(" "))
        assert folded == name


# What is read


def test_a_folder_stands_for_its_images_in_natural_order(program: Program, tmp_path: Path) -> None:
    root = tmp_path / "scans"
    for name in ("10.png", "2.PNG", "day 2/1.png", "day 10/1.png", "z.jpeg"):
        write_image(root / name, 1)
    (root / ".git").mkdir()
    for name in (".hidden.png", "notes.txt", "more.txt", "Makefile", ".git/a.png"):
        (root / name).write_bytes(png(0))
    code, out, err = program("predict", "digits", root, "--json")
    assert code == 0
    expected = ["2.PNG", "10.png", "day 2/1.png", "day 10/1.png", "z.jpeg"]
    assert [line["image"] for line in lines_of(out)] == [str(root / name) for name in expected]
    assert err == f"convoy: {root}: left out 5 entries: 2 .txt, 2 hidden, 1 without a suffix.\n"


def test_links_are_followed_but_not_in_circles(program: Program, folder: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "far.png", 2)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "one" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    code, out, err = program("predict", "digits", folder, "--json")
    assert code == 0
    assert sorted(names_of(out)) == ["a.png", "b.png", "c.png", "far.png"]
    assert "1 linked in a circle" in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_a_folder_is_left_out_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "to_pipe.png").symlink_to(folder / "pipe.png")
    (folder / "to_nothing.png").symlink_to(folder / "gone")
    left_out: Counter[str] = Counter()
    found = [Path(image.name).name for image in walk(folder, left_out)]
    assert found == ["b.png", "to_nothing.png", "c.png", "a.png"]
    assert left_out == {"not regular files": 2}


def test_a_folder_without_images_is_an_error_that_says_what_it_holds(program: Program, folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "within").mkdir(parents=True)
    code, out, err = program("predict", "digits", empty)
    assert (code, out) == (1, "")
    assert f"convoy: {empty}: expected images in this folder, found an empty folder." in err
    (empty / "within" / "notes.txt").touch()
    code, out, err = program("predict", "digits", empty, folder, "--json")
    assert code == 1
    failed, *answered = lines_of(out)
    assert failed["image"] == str(empty)
    assert "found 1 entry: 1 .txt" in failed["error"]
    assert len(answered) == 3
    assert "1 of 4 inputs could not be read" in err


def test_a_folder_that_cannot_be_listed_is_reported_and_the_others_are_read(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "one":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(cli_images.os, "scandir", refuse)
    code, out, err = program("predict", "digits", folder)
    assert code == 1
    assert f"convoy: {folder / 'one'}: the folder cannot be listed: Permission denied." in err
    assert [name in out for name in ("a.png", "b.png", "c.png")] == [True, False, True]


def test_a_folder_is_read_without_what_training_needs(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png", 0)
    code = (
        "import sys\nfor name in ('torch', 'torchvision', 'sklearn', 'onnx', 'pyarrow'): sys.modules[name] = None\n"
        "import convoy.cli.answers, convoy.cli.predict\nfrom convoy.cli.images import Sources\n"
        "print(len(list(Sources([sys.argv[1]]))))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


def test_predict_takes_the_same_files_for_images_as_score() -> None:
    from convoy.serving.scoring.source._image_file import IMAGE_SUFFIXES

    assert cli_images.IMAGE_SUFFIXES == IMAGE_SUFFIXES


def test_an_image_on_stdin_is_answered_beside_files(program: Program, folder: Path, stdin: Callable[[bytes], None]) -> None:
    stdin(png(2))
    code, out, err = program("predict", "digits", folder / "one" / "b.png", "-", folder / "zero", "--json")
    assert (code, err) == (0, "")
    assert [(Path(line["image"]).name, line["label"]) for line in lines_of(out)] == [
        ("b.png", "one"),
        ("-", "two"),
        ("a.png", "zero"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "found none"), (b"no image", "expected an image (PNG, JPEG, ...)"), (b"x" * 101, "found more than 100 bytes")],
)
def test_what_is_no_image_on_stdin_is_reported(
    content: bytes, reason: str, program: Program, stdin: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_images, "_MOST_BYTES", 100)
    stdin(content)
    code, out, err = program("predict", "digits", "-")
    assert (code, out) == (1, "")
    assert err.startswith("convoy: stdin: ")
    assert reason in err


def test_wrong_use_of_stdin_is_told_before_anything_is_asked(
    program: Program, monkeypatch: pytest.MonkeyPatch, fake: FakeTransport, stdin: Callable[[bytes], None]
) -> None:
    stdin(png(0))
    code, _, err = program("predict", "digits", "-", "-")
    assert code == 2
    assert "may be given once" in err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, _, err = program("predict", "digits", "-")
    assert code == 2
    assert "found a terminal" in err
    code, _, err = program("predict", "digits")
    assert code == 2
    assert "Missing argument 'IMAGE...'" in err
    assert not fake.calls


# In which portions


def test_answers_are_printed_before_later_images_are_asked_for(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeTransport
) -> None:
    for i in range(7):
        write_image(tmp_path / "set" / f"{i}.png", i)
    monkeypatch.setattr(predict, "_MOST_IMAGES", 2)
    run = fake.models["digits"].run
    asked: list[int] = []

    def fail_at_the_third(inputs: Any) -> Any:
        asked.append(len(inputs["image"]))
        if len(asked) == 3:
            raise ServerFailureError("the server fell over.")
        return run(inputs)

    model = fake.models["digits"]
    fake.models["digits"] = FakeModel(fail_at_the_third, model.inputs, model.config, model.version)
    code, out, err = program("predict", "digits", tmp_path / "set", "--json")
    assert code == 1
    assert names_of(out) == ["0.png", "1.png", "2.png", "3.png"]
    assert asked == [2, 2, 2]
    assert err == "convoy: error: the server fell over.\n"


def test_images_that_take_long_to_read_are_not_held_back(
    program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeTransport
) -> None:
    monkeypatch.setattr(predict, "_MOST_S", -1.0)
    code, out, _ = program("predict", "digits", folder, "--json")
    assert code == 0
    assert names_of(out) == ["b.png", "c.png", "a.png"]
    assert [call.inputs[0].shape[0] for call in infers(fake)] == [1, 1, 1]


def test_a_large_folder_is_not_read_ahead(tmp_path: Path) -> None:
    from convoy.contract.image import ImageSpec

    read: list[str] = []
    for i in range(200):
        (tmp_path / f"{i}.png").touch()
    spec = ImageSpec(height_px=4, width_px=4, channels=1)
    batches = predict._batches(Sources([str(tmp_path)]), spec, lambda found, _: read.append(found.name))
    assert len(next(batches)) == len(read) == predict._MOST_IMAGES
    huge = predict._batches(Sources([str(tmp_path)]), ImageSpec(height_px=8192, width_px=8192, channels=3), lambda found, _: found)
    assert len(next(huge)) == 1


# How the server is reached


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("grpc://box:8001", "grpcs://box:8001"),
        ("http://box:8000", "https://box:8000"),
        ("grpcs://box", "grpcs://box:443"),
        ("https://box:8443", "https://box:8443"),
    ],
)
def test_tls_makes_the_url_a_secure_one(url: str, asked: str, program: Program, folder: Path, opened: list[Any]) -> None:
    assert program("predict", "digits", folder, "--url", url, "--tls")[0] == 0
    assert {server for server, _ in opened} == {asked}
    opened.clear()
    assert program("predict", "digits", folder, "--url", url)[0] == 0
    assert {server.split(":")[0] for server, _ in opened} == {url.split(":")[0]}


def test_headers_are_sent_and_never_shown(program: Program, folder: Path, opened: list[Any]) -> None:
    header = f"Authorization:  {SECRET}: more"
    code, out, err = program("predict", "digits", folder, "--header", header, "--header", "x-team: vision")
    assert (code, err) == (0, "")
    assert [headers for _, headers in opened] == [{"authorization": f"{SECRET}: more", "x-team": "vision"}]
    opened.clear()
    code, out, err = program("-vv", "predict", "nobody", folder, "--header", header)
    assert code == 1
    assert SECRET not in out + err
    assert len(opened) == 2, "the question which models are served needs the headers too"
    assert all("authorization" in headers for _, headers in opened)


@pytest.mark.parametrize(
    "header",
    [
        SECRET,
        f"authorization={SECRET}",
        f"authorization = x: {SECRET}",
        f": {SECRET}",
        "authorization:",
        f"a: {SECRET}\n",
        f"a: {SECRET}é",
    ],
)
def test_a_header_of_the_wrong_form_is_wrong_use_and_is_not_repeated(
    header: str, program: Program, folder: Path, fake: FakeTransport
) -> None:
    if header.endswith("\n"):
        header += "b: c"
    code, out, err = program("predict", "digits", folder, "--header", "x: y", "--header", header)
    assert (code, out) == (2, "")
    assert "expected 'NAME: VALUE' as number 2" in err
    assert SECRET not in err
    assert not fake.calls


def test_a_header_that_is_given_twice_is_wrong_use(program: Program, folder: Path) -> None:
    code, _, err = program("predict", "digits", folder, "--header", "X-Team: a", "--header", "x-team: b")
    assert code == 2
    assert "given before" in err


def test_several_urls_are_several_servers(program: Program, folder: Path, opened: list[Any]) -> None:
    code, out, err = program("predict", "digits", folder, "--url", "grpc://127.0.0.1:1", "--url", "grpc://127.0.0.1:2", "--tls")
    assert (code, err) == (0, "")
    assert {server.split()[0] for server, _ in opened} <= {"grpcs://127.0.0.1:1", "grpcs://127.0.0.1:2"}
    assert len(out.splitlines()) == 4
    code, _, err = program("predict", "digits", folder, "--url", "grpc://127.0.0.1:1", "--url", "localhost")
    assert code == 2
    assert "'localhost' is no server URL" in err


def test_a_model_that_convoy_did_not_deploy_is_told_from_one_that_is_not_there(program: Program, folder: Path) -> None:
    code, out, err = program("predict", "echo", folder)
    assert (code, out) == (2, "")
    assert "`convoy deploy` did not write it" in err
    assert "client.infer" in err


# What appears in a folder


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    write_image(tmp_path / "inbox" / "old.png", 0)
    return tmp_path / "inbox"


def look(watch: Watch) -> list[str]:
    """Look once and take what is there."""
    found = watch.settled()
    for image in found:
        watch.done(image)
    return [Path(image.name).name for image in found]


def test_a_file_is_told_of_when_it_has_settled_and_once(inbox: Path) -> None:
    watch = Watch(inbox)
    assert (look(watch), watch.n_known) == ([], 1)
    write_image(inbox / "10.png", 1)
    write_image(inbox / "new" / "2.png", 1)
    (inbox / "notes.txt").touch()
    (inbox / ".part.png").touch()
    assert look(watch) == []
    assert look(watch) == ["10.png", "2.png"]
    assert look(watch) == []


def test_a_file_that_grows_waits(inbox: Path) -> None:
    watch = Watch(inbox)
    content = png(1)
    (inbox / "new.png").touch()
    assert [look(watch), look(watch)] == [[], []], "an empty file is one that somebody is about to write"
    for end in (10, 20, len(content)):
        (inbox / "new.png").write_bytes(content[:end])
        assert look(watch) == []
    assert look(watch) == ["new.png"]


def test_a_file_that_is_written_again_or_replaced_or_comes_back_is_told_of_again(inbox: Path, tmp_path: Path) -> None:
    watch = Watch(inbox)
    (inbox / "old.png").write_bytes(png(2) + b"more")
    assert [look(watch), look(watch), look(watch)] == [[], ["old.png"], []]
    (tmp_path / "other.png").write_bytes(png(2) + b"more")
    (tmp_path / "other.png").replace(inbox / "old.png")
    assert [look(watch), look(watch), look(watch)] == [[], ["old.png"], []]
    (inbox / "old.png").rename(tmp_path / "away.png")
    assert look(watch) == []
    (tmp_path / "away.png").rename(inbox / "old.png")
    assert [look(watch), look(watch), look(watch)] == [[], ["old.png"], []]


def test_what_was_not_answered_is_told_of_again(inbox: Path) -> None:
    watch = Watch(inbox)
    write_image(inbox / "new.png", 1)
    watch.settled()
    assert len(watch.settled()) == len(watch.settled()) == 1
    assert look(watch) == ["new.png"]
    assert look(watch) == []


def test_a_folder_that_goes_away_is_told_of_once_and_its_images_stay_known(inbox: Path, tmp_path: Path) -> None:
    watch = Watch(inbox)
    inbox.rename(tmp_path / "away")
    gone = watch.settled()
    assert [found.error for found in gone] == [f"{inbox}: the folder cannot be listed: No such file or directory."]
    watch.done(gone[0])
    assert look(watch) == []
    (tmp_path / "away").rename(inbox)
    assert [look(watch), look(watch)] == [[], []]
    inbox.rename(tmp_path / "away")
    assert look(watch) == ["inbox"]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do these things, one between two looks at the watched folder; Ctrl-C comes after the last."""

    def plan(*things: Callable[[], Any]) -> None:
        left = list(things)

        def pause(seconds: float) -> None:
            assert seconds >= 0.5
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr(predict, "_pause", pause)

    return plan


def nothing() -> None:
    pass


def test_watch_answers_what_appears_until_it_is_stopped(program: Program, inbox: Path, meanwhile: Callable[..., None]) -> None:
    meanwhile(lambda: write_image(inbox / "new.png", 2), nothing, nothing)
    code, out, err = program("predict", "digits", "--watch", inbox, "--json")
    assert code == 0
    assert [(Path(line["image"]).name, line["label"]) for line in lines_of(out)] == [("new.png", "two")]
    assert err.splitlines() == [
        f"convoy: watching {inbox} (images in it now: 1); Ctrl-C ends this.",
        f"convoy: stopped watching {inbox}: 1 input in all.",
    ]


def test_watch_answers_the_images_that_are_given_first(program: Program, inbox: Path, meanwhile: Callable[..., None]) -> None:
    bad = inbox / "bad.png"
    meanwhile(lambda: bad.write_text("no image"), nothing, lambda: bad.write_bytes(png(1)), nothing, nothing)
    code, out, err = program("predict", "digits", inbox, "--watch", inbox)
    assert code == 1
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["zero", "one"]
    assert err.count("bad.png: expected an image") == 1
    assert err.endswith("convoy: error: 1 of 3 inputs could not be read.\n")


class _Down:
    """Failures without end while the server is down."""

    def __init__(self, error: ClientError) -> None:
        self.is_down = False
        self._error = error

    def __bool__(self) -> bool:
        return self.is_down

    def popleft(self) -> ClientError:
        return self._error


def test_watch_waits_for_a_server_that_goes_away_and_says_so_once(
    program: Program, inbox: Path, meanwhile: Callable[..., None], fake: FakeTransport
) -> None:
    down = _Down(UnavailableError("no server."))
    fake.failures = down  # type: ignore[assignment]

    def go() -> None:
        down.is_down = True
        write_image(inbox / "new.png", 2)

    def come_back() -> None:
        down.is_down = False

    meanwhile(go, nothing, nothing, nothing, come_back, nothing)
    code, out, err = program("predict", "digits", "--watch", inbox, "--json")
    assert code == 0
    assert names_of(out) == ["new.png"]
    assert err.count("Trying again until the server answers.") == 1
    assert err.count("convoy: the server answers again.") == 1


def test_watch_ends_where_trying_again_is_of_no_use(
    program: Program, inbox: Path, tmp_path: Path, meanwhile: Callable[..., None], fake: FakeTransport
) -> None:
    down = _Down(ServerFailureError("the server is broken."))
    fake.failures = down  # type: ignore[assignment]

    def go() -> None:
        down.is_down = True
        write_image(inbox / "new.png", 2)

    meanwhile(go, nothing, nothing)
    code, out, err = program("predict", "digits", "--watch", inbox)
    assert (code, out) == (1, "")
    assert err.endswith("convoy: error: the server is broken.\n")
    assert program("predict", "nobody", "--watch", inbox)[0] == 1
    assert program("predict", "digits", "--watch", tmp_path / "gone")[0] == 2
