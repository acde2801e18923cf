"""Link budget: sums worked by hand, users nearer and farther, and the real sites and users of Melbourne's centre."""

import math
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from nmoe.channel.link_budget import LinkBudget, noise_dbm
from nmoe.channel.path_loss import FreeSpace, UrbanMacro, UrbanMicro
from nmoe.channel.positions import local_metres, read_positions
from nmoe.channel.shadowing import Shadowing
from nmoe.core.units import to_db

NETWORK = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "network"
MACRO = LinkBudget(power_dbm=46.0, bandwidth_hz=10e6, noise_figure_db=9.0, path_loss=UrbanMacro(), nearest_m=35.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_by_hand():
    assert noise_dbm(10e6, noise_figure_db=9.0) == pytest.approx(-95)
    assert noise_dbm(1.0, noise_figure_db=0.0) == -174


def test_mean_snr_by_hand():
    """46 dBm - 128.1 dB + 95 dB at 1 km, 37.6 dB more at 100 m; 20 m counts as 35 m."""
    sites_m = torch.tensor([[0.0, 0.0], [1000.0, 100.0]])
    users_m = torch.tensor([[1000.0, 0.0], [0.0, 20.0]])
    found = to_db(MACRO.mean_snr(users_m, sites_m, generator=generator()))
    assert found[0].tolist() == pytest.approx([12.9, 50.5], abs=1e-3)
    assert float(found[1, 0]) == pytest.approx(12.9 + 37.6 * math.log10(1000 / 35), abs=1e-3)


def test_shadowing_is_what_the_snr_differs_by():
    users_m, sites_m = 500 + 300 * torch.rand(200, 2, generator=generator(1)), torch.zeros(3, 2)
    shadowing = Shadowing(sigma_db=8.0, correlation_m=50.0)
    shadowed = LinkBudget(
        power_dbm=46.0, bandwidth_hz=10e6, noise_figure_db=9.0, path_loss=UrbanMacro(), shadowing=shadowing, nearest_m=35.0
    )
    plain_db = to_db(MACRO.mean_snr(users_m, sites_m, generator=generator()))
    shadowed_db = to_db(shadowed.mean_snr(users_m, sites_m, generator=generator()))
    wanted_db = shadowing.draw_db(users_m, num_sites=3, generator=generator())
    torch.testing.assert_close(plain_db - shadowed_db, wanted_db, atol=1e-3, rtol=0)


def test_heights_count_where_coordinates_have_them():
    budget = LinkBudget(power_dbm=0.0, bandwidth_hz=1e6, noise_figure_db=0.0, path_loss=FreeSpace(carrier_hz=3e8 / (4 * math.pi)))
    snr = budget.mean_snr(torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[3.0, 4.0, 100.0]]), generator=generator())
    assert float(to_db(snr)) == pytest.approx(174 - 60 - 40, abs=1e-3)


@pytest.mark.skipif(not NETWORK.is_dir(), reason=f"the project's data does not lie in {NETWORK}")
def test_melbournes_users_and_sites():
    sites_deg, users_deg = (read_positions(NETWORK / f"eua_{who}_melbcbd.csv") for who in ("servers", "users"))
    assert (len(sites_deg), len(users_deg)) == (125, 816)
    origin_deg = (float(sites_deg[:, 0].mean()), float(sites_deg[:, 1].mean()))
    sites_m, users_m = (local_metres(degrees, origin_deg=origin_deg) for degrees in (sites_deg, users_deg))
    assert float(users_m.abs().max()) < 3000
    micro = UrbanMicro(carrier_hz=3.5e9, line_of_sight=False)
    shadowing = Shadowing(sigma_db=7.82, correlation_m=13.0)
    budget = LinkBudget(power_dbm=33.0, bandwidth_hz=20e6, noise_figure_db=9.0, path_loss=micro, shadowing=shadowing)
    snr = budget.mean_snr(users_m, sites_m, generator=generator())
    assert snr.shape == (816, 125)
    assert bool(((snr > 0) & torch.isfinite(snr)).all())
    best_db = to_db(snr.max(dim=1).values)
    assert float((best_db > 0).double().mean()) > 0.95, "a city's centre is covered"
    assert float(to_db(snr).median()) < float(best_db.median()) - 20, "most sites are far from most users"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"power_dbm": math.inf}, "finite power in dBm wanted, got inf"),
        ({"bandwidth_hz": -1.0}, "above 0 Hz wanted, got -1.0"),
        ({"noise_figure_db": -1.0}, "at least 0 dB wanted, got -1.0"),
        ({"nearest_m": 0.0}, "above 0 m wanted, got 0.0"),
    ],
)
def test_bad_fields_are_refused(fields, said):
    good = {"power_dbm": 30.0, "bandwidth_hz": 1e6, "noise_figure_db": 5.0, "path_loss": UrbanMacro()}
    with pytest.raises(ValueError, match=said):
        LinkBudget(**(good | fields))


def test_bad_positions_are_refused():
    with pytest.raises((ValueError, TypeCheckError), match=r"got \[2, 3\] and \[2, 2\]|Type-check"):
        MACRO.mean_snr(torch.ones(2, 3), torch.ones(2, 2), generator=generator())
    with pytest.raises(ValueError, match="35 to 20000 m wanted, got nan m"):
        MACRO.mean_snr(torch.full((1, 2), math.nan), torch.ones(1, 2), generator=generator())
    with pytest.raises(ValueError, match="got 50000 m"):
        MACRO.mean_snr(torch.tensor([[50_000.0, 0.0]]), torch.zeros(1, 2), generator=generator())
