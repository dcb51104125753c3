"""The Gradio Space of a model: its three files, from a template."""

from importlib import resources

import yaml

APP, REQUIREMENTS, README = "app.py", "requirements.txt", "README.md"
TEMPLATE = "app.template"
GRADIO = "6.31.0"  # The one that the template was run with.


def make_space(repo: str, space: str, license: str) -> dict[str, bytes]:
    """The Space's files by name; it loads the model `repo` from the Hub."""
    template = resources.files("train.publish").joinpath(TEMPLATE).read_text("utf-8")
    header = {
        "title": space.partition("/")[2],
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": APP,
        "license": license,
        "models": [repo],
    }
    front = yaml.safe_dump(header, sort_keys=False)
    return {
        APP: template.replace('"MODEL"', f'"{repo}"').encode(),
        REQUIREMENTS: b"torch\ntransformers>=4.56\naccelerate\n",
        README: f"---\n{front}---\n\nText from [{repo}](https://huggingface.co/{repo}).\n".encode(),
    }
