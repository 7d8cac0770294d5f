"""What the workflows may do, and whose code they run."""

import re
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github" / "workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_may_only_read(path):
    """A tag can be moved to other code, a commit cannot; the comment says which release it is."""
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used and all(
        re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one) for one in used
    ), used
    assert (
        re.search(r"^permissions:\n  contents: read\n\n", text, re.MULTILINE)
        and text.count("permissions:") == 1
    )
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "pull_request_target" not in text


def test_the_same_action_is_the_same_commit_everywhere():
    used = {
        one
        for path in WORKFLOWS
        for one in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    }
    assert len(used) == len({one.partition("@")[0] for one in used})
