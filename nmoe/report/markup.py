"""HTML that cannot be forgotten to be escaped: text becomes markup only through ``tag``, which escapes all that is not markup already."""

import html


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """Return ``text`` as markup, escaped unless it is markup already."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def joined(*parts: str) -> Markup:
    """Return the parts as one piece of markup, each escaped unless it is markup already."""
    return Markup("\n".join(escaped(part) for part in parts if part))


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """Return an element.

    Args:
        name: tag, such as ``td``.
        children: text, which is escaped, or markup, which is not.
        attributes: values are escaped; ``class_`` is written ``class`` and ``aria_label`` is written ``aria-label``.
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items() if value)
    return Markup(f"<{name}{written}>{''.join(escaped(child) for child in children)}</{name}>")
