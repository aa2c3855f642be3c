"""Batches that other processes make arrive, or the process that cannot send them is missed."""

from __future__ import annotations

import pickle

import pytest

from ftray.errors import RunFailedError
from ftray.media import Media
from ftray.models.ahead import ahead


def test_media_with_a_view_of_their_content_can_be_pickled() -> None:
    media = Media(modality="image", address="sha256:00", data=memoryview(b"abc"))
    again = pickle.loads(pickle.dumps(media))
    assert again == media and again.read() == b"abc"
    assert pickle.loads(pickle.dumps(media.without_data)).data is None


@pytest.mark.timeout(60)
def test_what_cannot_be_pickled_is_an_error_and_no_wait(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailedError, match="makes batches ready died"):
        list(ahead(lambda number: lambda: number, range(4), 1))
    assert "pickle" in capfd.readouterr().err
