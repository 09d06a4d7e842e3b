"""What works on the device alone: no network, no model."""

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lethe


def test_a_first_list_needs_no_network(tmp_path, catalogue):
    with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as client:
        assert len(client.top(10).items) == 6
        client.like("1", at=1_700_000_000)
        page = client.top(2)
        assert page.items[0].title == "Fargo", "like what was liked"
        assert page.source == lethe.ListSource.CATALOGUE_WITHOUT_TABLES
        assert page.items[0].reasons == [], "reasons come with tables"
        assert client.explain("1").met
        assert [place.title for place in client.similar("3", 1).items] == ["Antz"]
        client.feedback(page, "2", lethe.Outcome.CLICKED)
        assert client.status().feedback[0].clicked == 1


def test_pages_filters_and_candidates(tmp_path, catalogue):
    with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as client:
        first = client.top(4)
        second = client.top(4, after=first.next)
        shown = [place.item for page in (first, second) for place in page.items]
        assert sorted(shown) == ["1", "2", "3", "4", "5", "6"]
        assert second.next is None
        assert [place.title for place in client.top(tags=["kids"]).items] == ["Babe", "Antz"]
        assert [place.item for place in client.top(candidates=["5", "6"], exclude=["5"]).items] == ["6"]


def test_events_are_undone_exported_and_imported(tmp_path, catalogue):
    with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as client:
        liked = client.like("1", at=10)
        client.rate("2", 4.5, at=20)
        client.view("3", 90, at=30)
        assert client.undo(liked).item == "1"
        assert client.undo(liked) is None
        assert client.undo().kind == lethe.EventKind.VIEW
        export = client.export()
        assert json.loads(export)
    with lethe.Client.open(tmp_path / "other", catalogue=catalogue) as other:
        assert other.import_(export) == 1
        assert other.import_(export) == 0, "the same event counts once"
        assert other.history()[0].event == lethe.Event(item="2", kind=lethe.EventKind.RATING, value=4.5, time=20)
        other.erase()
        with pytest.raises(lethe.Error.Closed):
            other.top(1)
    with lethe.Client.open(tmp_path / "other", catalogue=catalogue) as again:
        assert again.history() == []


def test_errors_are_told_apart_by_type(tmp_path, catalogue):
    folder = tmp_path / "app"
    with lethe.Client.open(folder, catalogue=catalogue) as client:
        with pytest.raises(lethe.Error.UnknownItem) as unknown:
            client.like("77")
        assert unknown.value.item == "77"
        assert "not in the catalogue" in str(unknown.value)
        with pytest.raises(lethe.Error.BadInput):
            client.rate("1", float("nan"))
        with pytest.raises(lethe.Error.BadInput):
            client.import_(b"no export")
        with pytest.raises(lethe.Error.InUse):
            lethe.Client.open(folder, catalogue=catalogue)
        assert client.history() == [], "no error has recorded anything"
    with pytest.raises(lethe.Error.Catalogue):
        lethe.Client.open(folder, catalogue=tmp_path / "nowhere")
    with pytest.raises(lethe.Error.BadOption, match="the port is missing"):
        lethe.Client.open(folder, catalogue=catalogue, server="no port")
    with pytest.raises(lethe.Error.BadOption, match="^the invitation does not parse"):
        lethe.Client.open(folder, catalogue=catalogue, invitation="none")
    with pytest.raises(lethe.Error.BadOption, match="give `device`"):
        lethe.Client.open(folder, catalogue=catalogue, required=lethe.Conditions())
    with pytest.raises(lethe.Error.Closed):
        client.top(1)


def test_another_process_may_not_open_the_folder(tmp_path, catalogue):
    folder = tmp_path / "app"
    code = (
        "import sys, lethe\n"
        "try:\n    lethe.Client.open(sys.argv[1], catalogue=sys.argv[2])\n"
        "except lethe.Error.InUse:\n    print('in use')\n"
    )
    run = [sys.executable, "-c", code, folder, catalogue]
    with lethe.Client.open(folder, catalogue=catalogue):
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "in use\n"
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == ""


class Keys(lethe.KeyStore):
    def __init__(self):
        self.key = None
        self.locked = False

    def load(self):
        if self.locked:
            raise lethe.CallbackError.Failed("the phone is locked")
        return self.key

    def store(self, key):
        self.key = key

    def remove(self):
        self.key = None


def test_the_key_is_in_the_platforms_store(tmp_path, catalogue):
    folder = tmp_path / "app"
    keys = Keys()
    with lethe.Client.open(folder, catalogue=catalogue, key_store=keys) as client:
        client.like("1")
    assert len(keys.key) == 32
    keys.locked = True
    with pytest.raises(lethe.Error.KeyStore, match="the phone is locked"):
        lethe.Client.open(folder, catalogue=catalogue, key_store=keys)
    # Restored from a backup on another phone: the folder is there, the key is not.
    with pytest.raises(lethe.Error.KeyLost):
        lethe.Client.open(folder, catalogue=catalogue, key_store=Keys())
    keys.locked = False
    # An app that brings no key this time breaks nothing.
    with pytest.raises(lethe.Error.KeyLost):
        lethe.Client.open(folder, catalogue=catalogue)
    with lethe.Client.open(folder, catalogue=catalogue, key_store=keys) as client:
        assert len(client.history()) == 1
    lethe.erase_folder(folder)
    with lethe.Client.open(folder, catalogue=catalogue, key_store=Keys()) as client:
        assert client.history() == []
    with lethe.Client.open(tmp_path / "second", catalogue=catalogue, key_store=(second := Keys())) as client:
        client.erase()
    assert second.key is None


def test_a_folder_is_given_back_though_an_error_still_holds_the_client(tmp_path, catalogue):
    with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as client:
        with pytest.raises(lethe.Error.UnknownItem) as kept:
            client.explain("77")
    with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as again:
        assert again.history() == []
    assert kept.value.item == "77"


def test_two_threads_record_and_read(tmp_path, catalogue):
    with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as client:
        failed = []

        def work(start):
            try:
                for at in range(start, start + 50):
                    client.view("1", 1, at=at)
                    client.top(3)
            except Exception as e:
                failed.append(e)

        threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(2)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert failed == []
        assert len(client.history()) == 100


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_thousand_opens_leave_nothing_behind(tmp_path, catalogue):
    def open_once():
        with lethe.Client.open(tmp_path / "app", catalogue=catalogue) as client:
            client.top(3)

    for _ in range(100):
        open_once()
    gc.collect()
    memory, files = resident(), len(os.listdir("/proc/self/fd"))
    for _ in range(1000):
        open_once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert resident() - memory < 8 << 20, "a kilobyte an open would be one MiB"


def test_a_process_that_is_killed_while_it_writes_loses_nothing_acknowledged(tmp_path, catalogue):
    folder = tmp_path / "app"
    code = (
        "import sys, lethe\n"
        "client = lethe.Client.open(sys.argv[1], catalogue=sys.argv[2])\n"
        "at = 0\n"
        "while True:\n    at += 1\n    client.view('1', 1, at=at)\n    print(at, flush=True)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code, folder, catalogue], stdout=subprocess.PIPE, text=True
    )
    for _ in range(200):
        acknowledged = int(killed.stdout.readline())
    killed.kill()
    rest = killed.stdout.read().split()
    killed.wait()
    acknowledged = int(rest[-1]) if rest else acknowledged
    with lethe.Client.open(folder, catalogue=catalogue) as client:
        times = [recorded.event.time for recorded in client.history()]
    assert times in (list(range(1, acknowledged + 1)), list(range(1, acknowledged + 2)))
