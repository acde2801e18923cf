"""Incentive: who trains how much for what pay (ASOSA): a game between a task publisher, model owners and workers."""

from nmoe.market.incentive.asosa import Asosa, Damping, Loop, Step, settle_response, upper_layer
from nmoe.market.incentive.base import (
    POOL,
    BadRecruitment,
    DataValue,
    Orders,
    Owners,
    Publisher,
    Recruitment,
    Settlement,
    WorkerLayer,
    WorkerResponse,
    Workers,
)
from nmoe.market.incentive.data_value import LogValue, PowerValue, SaturatingValue
from nmoe.market.incentive.deviation import deviation_gains, deviation_samples, utilities_at
from nmoe.market.incentive.draws import GameRanges, draw_recruitment
from nmoe.market.incentive.exact_workers import ExactWorkers, exact_workers
from nmoe.market.incentive.joint import anticipating_equilibrium, joint_equilibrium
from nmoe.market.incentive.nash import NashShares, nash_shares
from nmoe.market.incentive.plan import RecruitmentPlan, plan_json, read_plan
from nmoe.market.incentive.posted_price import PostedPrice, best_posted_price
from nmoe.market.incentive.stackelberg import best_reward, best_total
from nmoe.market.incentive.strategies import STRATEGIES, Strategy

__all__ = [
    "POOL",
    "STRATEGIES",
    "Asosa",
    "BadRecruitment",
    "Damping",
    "DataValue",
    "ExactWorkers",
    "GameRanges",
    "LogValue",
    "Loop",
    "NashShares",
    "Orders",
    "Owners",
    "PostedPrice",
    "PowerValue",
    "Publisher",
    "Recruitment",
    "RecruitmentPlan",
    "SaturatingValue",
    "Settlement",
    "Step",
    "Strategy",
    "WorkerLayer",
    "WorkerResponse",
    "Workers",
    "anticipating_equilibrium",
    "best_posted_price",
    "best_reward",
    "best_total",
    "deviation_gains",
    "deviation_samples",
    "draw_recruitment",
    "exact_workers",
    "joint_equilibrium",
    "nash_shares",
    "plan_json",
    "read_plan",
    "settle_response",
    "upper_layer",
    "utilities_at",
]
