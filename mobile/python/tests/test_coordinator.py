"""Against a real coordinator with people at work."""

import asyncio
import time

import pytest

import lethe

PATIENCE = 120


def events(world):
    kinds = {"like": lethe.EventKind.LIKE, "dislike": lethe.EventKind.DISLIKE}
    return [lethe.Event(item=e["item"], kind=kinds[e["kind"]], value=0.0, time=e["time"]) for e in world.history]


async def step_that_waits(client):
    """A step that has found nothing to do yet: what there was to do is done."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        step = asyncio.create_task(client.step())
        await asyncio.sleep(0.5)
        if not step.done():
            return step
        step.result()
    raise AssertionError("there is always something to do")


def test_from_enrolment_to_deletion(tmp_path, world):
    async def life():
        model = lethe.load_model(world.model, layers_in=world.layers[0], layers_out=world.layers[1])
        client = lethe.Client.open(
            tmp_path / "app",
            catalogue=world.catalogue,
            server=world.server,
            invitation=world.invite("ana"),
            model=model,
        )
        assert not client.status().enrolled
        client.record_all(events(world))
        await client.join()
        assert client.status().enrolled
        assert client.status().subject == "ana"

        # Training begins with this device; tables come when it has contributed.
        done = []
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and not (lethe.Done.TRAINED() in done and client.status().tables):
            done.append(await client.step())
        assert lethe.Done.TRAINED() in done, done
        assert client.status().contributed.events > 0
        page = client.top(5)
        assert page.source == lethe.ListSource.OWN_HISTORY
        assert page.items[0].like is not None
        assert any(place.reasons for place in page.items)

        # Away: everything on the device goes on, and the error says which kind it is.
        world.ask("stop")
        with pytest.raises(lethe.Error.Offline):
            await client.refresh()
        client.like(page.items[0].item)
        assert client.top(5).items
        world.ask("start")
        back = time.monotonic() + PATIENCE
        while True:
            try:
                await client.refresh()
                break
            except lethe.Error.Offline:
                assert time.monotonic() < back
                await asyncio.sleep(0.2)

        # Cancelled while it waits for work: the client goes on.
        waiting = await step_that_waits(client)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await client.refresh()

        # The folder is given back while a step is under way.
        cut = await step_that_waits(client)
        client.release()
        client = lethe.Client.open(tmp_path / "app", catalogue=world.catalogue, server=world.server, model=model)
        assert client.status().subject == "ana"
        with pytest.raises(lethe.Error.Closed):
            await asyncio.wait_for(cut, 20)

        # The language model ranks over the split, once a round has ended.
        world.ask("trained")
        ranked = await client.recommend([place.item for place in client.top(8).items], 3)
        assert len(ranked.items) == 3 and ranked.source.is_LIVE()
        await client.set_contributing(False)
        assert client.status().contributes == lethe.Contributes.NO()

        # Deleted by the operator: the app sees it, and the person's own copy is theirs to erase.
        world.ask("forget ana")
        with pytest.raises(lethe.Error.Deleted):
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until:
                await client.refresh()
        client.erase()
        client.release()

    asyncio.run(life())


def test_an_invitation_counts_once_and_the_other_device_is_told(tmp_path, world):
    async def life():
        invitation = world.invite("ben")
        options = {"catalogue": world.catalogue, "server": world.server, "invitation": invitation}
        first = lethe.Client.open(tmp_path / "first", **options)
        await first.connect()
        second = lethe.Client.open(tmp_path / "second", **options)
        with pytest.raises(lethe.Error.NeedsInvitation):
            await second.connect()
        assert second.top(1).items, "lists go on"
        nobody = lethe.Client.open(tmp_path / "third", catalogue=world.catalogue)
        with pytest.raises(lethe.Error.NotConfigured):
            await nobody.refresh()
        await first.close()

    asyncio.run(life())


class Phone(lethe.Device):
    def __init__(self):
        self.charging = False
        self.broken = False

    def conditions(self):
        if self.broken:
            raise RuntimeError("a fault of the app's")
        return lethe.Conditions(charging=self.charging)


def test_a_device_trains_only_under_its_conditions(tmp_path, world):
    async def life():
        phone = Phone()
        client = lethe.Client.open(
            tmp_path / "app",
            catalogue=world.catalogue,
            server=world.server,
            invitation=world.invite("eva"),
            device=phone,
        )
        done = await client.step()
        assert done.is_NOT_NOW() and not done.holds.charging
        phone.broken = True
        done = await client.step()
        assert done.is_NOT_NOW() and not done.holds.idle, "what the app cannot answer does not hold"
        phone.broken = False
        phone.charging = True
        done = await client.step()
        assert not done.is_NOT_NOW()
        await client.close()

    asyncio.run(life())
