"""Writes the table of settings, which the tasks declare, into docs/settings.md: `make settings`."""

from pathlib import Path

from skin_jax.base import settings
from skin_jax.tasks.declared import classifier, dcgan, projected, sgan

page = Path(__file__).parents[1] / "docs" / "settings.md"
begin, end = "<!-- settings -->\n", "\n<!-- end of settings -->"
before, _, rest = page.read_text().partition(begin)
page.write_text(
    before
    + begin
    + settings.table([task.NAME for task in (sgan, dcgan, projected, classifier)])
    + end
    + rest.partition(end)[2]
)
