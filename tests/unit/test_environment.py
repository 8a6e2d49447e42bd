"""URL and keys from the environment: which variable counts, and which keys are refused."""

import base64
import json
from pathlib import Path

import pytest

from processors_v2._transport.environment import publishable_project_from_env
from processors_v2.errors import ConfigurationError
from processors_v2.stage_tracker import StageTracker

NAMES = ["SUPABASE_SECRET_KEYS", "SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_KEY"]
PUBLISHABLE = ["SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY"]
URL = "https://abcdefghijkl.supabase.co"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment without variables of Supabase, in an empty folder."""
    for name in [*NAMES, *PUBLISHABLE, "SUPABASE_URL"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def token(role: str) -> str:
    """A legacy key: a JWT of a role."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"iss": "supabase", "role": role, "exp": 4102444800}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


def key_of(tracker: StageTracker) -> str:
    """The key that a tracker sends."""
    return str(tracker.supabase.supabase_key)


@pytest.mark.parametrize("first", range(4))
def test_the_first_of_four_variables_counts(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Keys are looked for in a fixed order, from the new names to the old."""
    monkeypatch.setenv("SUPABASE_URL", URL)
    for name in NAMES[first:]:
        value = f"sb_secret_{name}"
        monkeypatch.setenv(name, json.dumps({"default": value, "other": "x"}) if name == NAMES[0] else value)
    tracker = StageTracker.from_env()
    assert key_of(tracker) == f"sb_secret_{NAMES[first]}"
    assert str(tracker.supabase.supabase_url).rstrip("/") == URL


def test_an_empty_variable_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set to nothing, or to blanks, does not count; blanks around a key do not either."""
    monkeypatch.setenv("SUPABASE_URL", f" {URL}\n")
    monkeypatch.setenv("SUPABASE_SECRET_KEY", "  ")
    monkeypatch.setenv("SUPABASE_KEY", " sb_secret_last\n")
    assert key_of(StageTracker.from_env()) == "sb_secret_last"


def test_a_file_in_the_working_directory_is_read(clean: Path) -> None:
    """Without variables, .env in the working directory gives URL and key."""
    (clean / ".env").write_text(f'SUPABASE_URL={URL}\nSUPABASE_KEY="sb_secret_from_file"\n', encoding="utf-8")
    assert key_of(StageTracker.from_env()) == "sb_secret_from_file"


def test_a_file_above_the_working_directory_is_found(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program started in a folder below finds the .env of its project."""
    (clean / ".env").write_text(f"SUPABASE_URL={URL}\nSUPABASE_KEY=sb_secret_above\n", encoding="utf-8")
    (clean / "backend").mkdir()
    monkeypatch.chdir(clean / "backend")
    assert key_of(StageTracker.from_env()) == "sb_secret_above"


def test_the_environment_wins_over_the_file(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URL and key of the environment count before those in .env, whatever the names of the keys."""
    (clean / ".env").write_text(f"SUPABASE_URL={OTHER}\nSUPABASE_SECRET_KEY=sb_secret_file\n", encoding="utf-8")
    monkeypatch.setenv("SUPABASE_URL", URL)
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_environment")
    tracker = StageTracker.from_env()
    assert (key_of(tracker), str(tracker.supabase.supabase_url).rstrip("/")) == ("sb_secret_environment", URL)


OTHER = "https://somebody-elses.example"


@pytest.mark.parametrize(
    ("file", "environment", "taken"),
    [
        ("SUPABASE_URL={other}", {"SUPABASE_KEY": "sb_secret_e"}, None),
        ("SUPABASE_URL={other}\nSUPABASE_KEY=sb_secret_f", {"SUPABASE_KEY": "sb_secret_e"}, None),
        ("SUPABASE_URL={other}\nSUPABASE_KEY=sb_secret_f", {"SUPABASE_URL": "{url}"}, None),
        ("SUPABASE_URL={url}\nSUPABASE_KEY=sb_secret_f", {"SUPABASE_KEY": "sb_secret_f"}, "sb_secret_f"),
        ("SUPABASE_URL={url}/\nSUPABASE_KEY=sb_secret_f", {"SUPABASE_URL": "{url}"}, "sb_secret_f"),
        ("SUPABASE_KEY=sb_secret_f", {"SUPABASE_URL": "{url}"}, "sb_secret_f"),
        ("SUPABASE_URL={url}\nSUPABASE_KEY=sb_secret_f", {"SUPABASE_URL": "", "SUPABASE_KEY": " "}, "sb_secret_f"),
    ],
    ids=["key to a file", "another key", "another url", "the same key", "the same url", "no other url", "empty"],
)
def test_a_key_goes_to_no_url_of_another_place(
    clean: Path, monkeypatch: pytest.MonkeyPatch, file: str, environment: dict[str, str], taken: str | None
) -> None:
    """URL and key of two places may be of two projects: that is refused, naming both places and what to set.

    Only where the places do not disagree are they taken together: they say the same, or the file with the key has no
    URL.
    """
    (clean / ".env").write_text(file.format(url=URL, other=OTHER), encoding="utf-8")
    (clean / "backend").mkdir()
    monkeypatch.chdir(clean / "backend")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(url=URL))
    if taken is not None:
        assert key_of(StageTracker.from_env()) == taken
        return
    with pytest.raises(ConfigurationError, match=r"may be of two projects\. Set both in one place: ") as caught:
        StageTracker.from_env()
    said = str(caught.value)
    assert f"{clean / '.env'}" in said
    assert ("SUPABASE_URL comes from the environment" in said) == ("SUPABASE_URL" in environment)
    assert (" SUPABASE_KEY in the environment" in said) == ("SUPABASE_URL" in environment)
    assert "sb_secret" not in said


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotation_marks_that_an_environment_keeps_are_taken_off(monkeypatch: pytest.MonkeyPatch, quote: str) -> None:
    """Some readers of env files, such as docker's, hand on the marks around a value."""
    monkeypatch.setenv("SUPABASE_URL", f"{quote}{URL}{quote}\n")
    monkeypatch.setenv("SUPABASE_KEY", f" {quote}sb_secret_x {quote}")
    tracker = StageTracker.from_env()
    assert (key_of(tracker), str(tracker.supabase.supabase_url).rstrip("/")) == ("sb_secret_x", URL)
    monkeypatch.setenv("SUPABASE_SECRET_KEYS", f'{quote}{{"default": "sb_secret_y"}}{quote}')
    assert key_of(StageTracker.from_env()) == "sb_secret_y"


@pytest.mark.parametrize("value", ['"{}', "{}'", "“{}”", "`{}`", "\"{}'"])
@pytest.mark.parametrize("name", ["SUPABASE_URL", "SUPABASE_KEY"])
def test_other_quotation_marks_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """One alone, or such as a word processor makes, is told with the name of the variable and without its value."""
    for variable, plain in {"SUPABASE_URL": URL, "SUPABASE_KEY": "sb_secret_x"}.items():
        monkeypatch.setenv(variable, value.format(plain) if variable == name else plain)
    with pytest.raises(
        ConfigurationError, match=f"{name} in the environment begins or ends with a quotation"
    ) as caught:
        StageTracker.from_env()
    assert "sb_secret_x" not in str(caught.value)


LINES = f"SUPABASE_URL={URL}\nSUPABASE_KEY=sb_secret_größe\n"


@pytest.mark.parametrize("content", [LINES.encode("utf-16"), LINES.encode("utf-16-le"), LINES.encode("latin-1")])
def test_a_file_that_is_not_utf_8_is_named(clean: Path, content: bytes) -> None:
    """The sentence names the file and what to do, and holds nothing of what stands in it; nor does its context."""
    (clean / ".env").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"\.env is not UTF-8\. Save it as UTF-8, or take it away") as caught:
        StageTracker.from_env()
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert str(clean / ".env") in str(caught.value)


def test_a_byte_order_mark_is_no_letter(clean: Path) -> None:
    """A file as editors on Windows save it is read."""
    (clean / ".env").write_text(LINES.replace("größe", "x"), encoding="utf-8-sig")
    assert key_of(StageTracker.from_env()) == "sb_secret_x"


def test_a_file_that_may_not_be_read_is_named(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error in one sentence; and none at all where the environment has both."""
    (clean / ".env").write_text(LINES, encoding="utf-8")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigurationError, match=r"\.env: Permission denied\. Make it readable"):
        StageTracker.from_env()
    monkeypatch.setenv("SUPABASE_URL", URL)
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_x")
    assert key_of(StageTracker.from_env()) == "sb_secret_x"


def test_a_working_directory_that_is_gone_has_no_file(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing then is told as ever."""
    gone = clean / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigurationError, match="SUPABASE_URL is missing"):
        StageTracker.from_env()


@pytest.mark.parametrize("url", [None, "", "abcdefghijkl.supabase.co", "postgresql://localhost/postgres"])
def test_a_url_is_needed(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    """Without an http(s) URL the sentence names the variable and the form."""
    if url is not None:
        monkeypatch.setenv("SUPABASE_URL", url)
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_x")
    with pytest.raises(ConfigurationError, match=r"SUPABASE_URL is missing or not an http.*supabase\.co"):
        StageTracker.from_env()


def test_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key the sentence names the variables in their order, and where to find the key."""
    monkeypatch.setenv("SUPABASE_URL", URL)
    with pytest.raises(ConfigurationError, match=", ".join(NAMES)) as caught:
        StageTracker.from_env()
    assert "Project Settings > API Keys" in str(caught.value)


@pytest.mark.parametrize(
    "value", ["sb_secret_plain", "[]", '{"other": "sb_secret_x"}', '{"default": ""}', '{"default": 5}']
)
def test_the_dictionary_has_an_entry_default(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """SUPABASE_SECRET_KEYS that is no such JSON object is refused with its form, not passed over, and not shown."""
    monkeypatch.setenv("SUPABASE_URL", URL)
    monkeypatch.setenv("SUPABASE_SECRET_KEYS", value)
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_other")
    with pytest.raises(ConfigurationError, match='not a JSON object with an entry "default"') as caught:
        StageTracker.from_env()
    assert value not in str(caught.value)


PUBLIC = {"publishable": "sb_publishable_0123456789", "anon": token("anon"), "authenticated": token("authenticated")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", PUBLIC)
def test_a_public_key_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """Keys made for browsers are refused with the name of the variable, and never shown."""
    key = PUBLIC[kind]
    monkeypatch.setenv("SUPABASE_URL", URL)
    monkeypatch.setenv(name, json.dumps({"default": key}) if name == NAMES[0] else key)
    with pytest.raises(ConfigurationError, match=f"{name} is (a|the) {kind} key, which may not write") as caught:
        StageTracker.from_env()
    assert "secret (or service_role) key" in str(caught.value)
    assert key not in str(caught.value)
    assert key not in repr(caught.value)


@pytest.mark.parametrize("key", [token("service_role"), "sb_secret_x", "a.b.c", "..", "x.!!!.y", "x.bnVsbA.y"])
def test_other_keys_are_taken(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A secret key, the service_role key, and keys of a form that nobody knows yet, are sent as they are."""
    monkeypatch.setenv("SUPABASE_URL", URL)
    monkeypatch.setenv("SUPABASE_KEY", key)
    assert key_of(StageTracker.from_env()) == key


def test_the_newest_kind_of_publishable_key_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary of publishable keys comes before a single one, and that before the anon key."""
    monkeypatch.setenv("SUPABASE_URL", URL)
    for name, value in zip(
        reversed(PUBLISHABLE), ("anon", "sb_publishable_1", '{"default": "sb_publishable_2"}'), strict=True
    ):
        monkeypatch.setenv(name, value)
        expected = "sb_publishable_2" if name == PUBLISHABLE[0] else value
        assert publishable_project_from_env() == (URL, expected)
