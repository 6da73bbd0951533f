"""What a name that nobody knows may have meant."""

import difflib
from collections.abc import Collection


def hint(word: str, known: Collection[str]) -> str:
    """Names in another case, those that begin with the word, or the one most like it; else all that are known."""
    plain = word.casefold().replace("-", "_")
    names = {name.casefold(): name for name in known}
    if plain in names:
        return f"did you mean {names[plain]}?"
    if family := [name for key, name in names.items() if key.startswith(f"{plain}_")]:
        return f"did you mean {' or '.join(filter(None, [', '.join(family[:-1]), family[-1]]))}?"
    if near := difflib.get_close_matches(plain, names, 1):
        return f"did you mean {names[near[0]]}?"
    return f"known: {', '.join(known)}"
