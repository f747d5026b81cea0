"""Values and files that have broken programs of this kind."""

VALUES = (
    "", " ", "-", "--", "-1", "0", "1e999", "nan", "-inf", "9" * 400, "0x10", "1_0", "½", "true", "null", "[]", "[1",
    "{", "{}", "[[1]]", "a: b", "!!python/name:os.system", "*a", "&a", "@file", "%s", "{0}", "$HOME", "`id`", "a\nb",
    "\x1b[2J", "\u202eb", "\udc80", "a/../../b", "..", ".", "in", "in/none", "in/text", "a" * 300, "a/" * 2100, "<b>",
    "=1+1", "é" * 200,
)  # fmt: skip
"""Of a flag, an argument, or a key in a file. `in/` is the folder of a command's input; `in/text` is a file of no use.

No large whole numbers: a training of 10^9 epochs is no mistake that a program could see.
"""

FILES: dict[str, bytes] = {
    "empty": b"",
    "null bytes": bytes(64),
    "not text": b"\xff\xfe\x00\xd8" * 4,
    "one number": b"7",
    "list": b"[1, 2]",
    "nested": b"[" * 5000,
    "no numbers": b'{"a": null, "b": NaN, "c": 1e999, "d": "\\ud800"}',
    "keys twice": b'{"a": 1, "a": 2}',
    "columns": b'path,label,split\r\n,,\r\n"a\r\n',
    "columns twice": b"path,path\na,b\n",
    "long line": b"a," * 20000,
    "text": b"one\ntwo\x00three\n",
    "yaml": b"a: &a [*a]\n? {b: 1}\n: 2\n",
    "tags": b"!!python/object/apply:os.system [exit]",
}
"""In place of a file that a command reads; so are a folder, nothing and a link to itself."""
