"""The sentence of measured speeds: networks that people know, in their true size."""

from benchmarks.tables import speed


def row(network, form="eager", *, interval=3, width=1, batch=4, **speedup):
    return {
        "network": network,
        "title": network.upper(),
        "form": form,
        "interval": interval,
        "width": width,
        "batch": batch,
        "branch": 0,
        "steps": 30,
        "speedup": speedup,
    }


def test_the_default_is_told_for_the_known_networks_of_each_device(monkeypatch):
    gpu = [
        row("sdxl", default=2.95),
        row("sd15", "cudagraphs", default=2.714, ours=2.3),
        row("sd15", default=2.8),
        row("sd15", default=2.9, interval=5),
        row("sd15", ours=2.4),
        row("sdxl", default=2.8, batch=1),
        row("ddpm-lsun", default=2.77),
    ]
    small = [row("sd15", default=2.6, width=0.5)]
    found = [{"device": "A", "rows": gpu}, {"device": "B", "rows": small}]
    monkeypatch.setattr(speed, "reports", lambda name: found if name == "speed" else [])
    assert speed.measured() == (
        "Measured speed of the loop (on A, one full step in 3, random weights): "
        "SD15 2.80× (eager, 30 steps), SDXL 2.95× (eager, 30 steps)."
    )
