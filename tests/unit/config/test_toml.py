"""Every key has its line, however the file is written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.config.errors import ConfigErrors
from opentsm.config.toml import find_lines, read_toml

AWKWARD = '''\
# [not.a.table]
[a]  # comment with ] and "
b = "x = [1"            # 3
c = """
[d]
e = 1
\\""" """                # ends on 7
f = [                    # 8
  "g", # h = 1
  { i = 1, j = [2,
  3] },
]
"k.l" = \'\'\'
m = 1\'\'\'\'            # 14
'n' . o = 1              # 15
p.q.r = { s = "}" }      # 16

  [ t . "u v" ]          # 18
w = 'x # y'              # 19
[[z]]                    # 20
aa = 2020-01-01 00:00:00 # 21
[[z]]
aa = 1
'''


def test_lines_in_an_awkward_file() -> None:
    assert find_lines(AWKWARD) == {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "f"): 8,
        ("a", "k.l"): 13,
        ("a", "n"): 15,
        ("a", "n", "o"): 15,
        ("a", "p"): 16,
        ("a", "p", "q"): 16,
        ("a", "p", "q", "r"): 16,
        ("t",): 18,
        ("t", "u v"): 18,
        ("t", "u v", "w"): 19,
        ("z",): 20,
        ("z", "aa"): 21,
    }
    assert set(tomllib.loads(AWKWARD)) == {"a", "t", "z"}


def test_windows_line_ends_count_once() -> None:
    assert find_lines("a = 1\r\n\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("b", "c"): 4}


scalars = st.one_of(
    st.integers(-5, 5).map(str),
    st.sampled_from(['"a"', '"#"', "'['", '"""x\ny"""', "'''\n]'''", "true", "1.5", '"\\""', '"\\\\"']),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3).map(lambda items: "[\n" + ",# [\n".join(items) + "\n]"),
    max_leaves=6,
)
keys = st.sampled_from(["a", "b-c", '"d e"', "'f.g'", "h1", '"#"', '"]"', "_", "0"])


@given(st.lists(st.tuples(st.booleans(), keys, values, st.sampled_from(["", "\n", " # [x]\n"])), max_size=12))
def test_lines_are_those_where_the_generator_wrote_them(parts: list[tuple[bool, str, str, str]]) -> None:
    text, table = "", ""
    expected: dict[tuple[str, ...], int] = {}
    for index, (is_table, key, value, gap) in enumerate(parts):
        text += gap
        line = text.count("\n") + 1
        name = tomllib.loads(f"{key} = 0")
        (plain,) = name
        if is_table:
            table = f"t{index}"
            text += f"[{table}]\n"
            expected[(table,)] = line
            continue
        path = (table, plain) if table else (plain,)
        if path not in expected:
            text += f"{key} = {value}\n"
            expected[path] = line
    tomllib.loads(text)
    assert find_lines(text) == expected


def test_objects_and_settings_come_with_their_lines() -> None:
    document = read_toml("[timers]\nkeepalive-timer = 0\n[realm.a]\ncore = 'none'\n[realm.b]\n", "f")
    found = [
        (node.kind, node.name, node.line, [(e.key, e.line) for e in node.entries]) for node in document.nodes
    ]
    assert found == [
        ("timers", "", 1, [("keepalive-timer", 2)]),
        ("realm", "a", 3, [("core", 4)]),
        ("realm", "b", 5, []),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nb =\n", "f:2: not valid TOML: Invalid value"),
        ("a = 1\na = 2\n", "f:2: not valid TOML: Cannot overwrite a value"),
        ("[a]\n[a]\n", "f:2: not valid TOML: Cannot declare"),
        ("a = on\n", 'a text needs quotes: name = "text"'),
        ("a = " + "[" * 100_000, "f: the values are nested too deeply"),
        ("a = " + "9" * 5_000, "f: not valid TOML"),
        ("a = 1\n\x00", "f:2: not valid TOML"),
    ],
)
def test_what_is_no_toml_says_where(text: str, said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read_toml(text, "f")
    assert said in str(caught.value)
