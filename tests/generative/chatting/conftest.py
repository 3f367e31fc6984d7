from pathlib import Path

import pytest

from tests.chat_files import chat_bundle


@pytest.fixture(scope="session")
def bundle() -> Path:
    return chat_bundle()
