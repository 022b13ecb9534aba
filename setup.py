"""The description that package indexes show: README without what only a repository has.

Everything else stands in setup.cfg. Pictures and links of README are relative, and there they would
lead nowhere.
"""

import re
from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
text = re.sub(r"!\[[^]]*\]\((?!https:)[^)]*\)\n*", "", text)
text = re.sub(r"\[([^]]*)\]\((?!https:)[^)]*\)", r"\1", text)

setup(long_description=text, long_description_content_type="text/markdown")
