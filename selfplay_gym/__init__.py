"""A verifiable self-play reasoning gym with code-execution rewards.

Importing this package registers its Gymnasium environments: ``selfplay_gym/SelfPlay-v0``, and one id for every task
family, installed plug-ins included. It imports no plug-in and no torch.
"""

from selfplay_gym import literals, rewards
from selfplay_gym.archive import Archive, ArchiveError, Statistics, StoredTask
from selfplay_gym.envs import (
    SelfPlayEnv,
    SolveEnv,
    environment_id,
    register_environments,
    register_family,
)
from selfplay_gym.errors import (
    EndpointError,
    ExecutorError,
    InvalidConfig,
    InvalidData,
    MissingData,
    RunFolderError,
    SelfPlayError,
    UnknownId,
)
from selfplay_gym.frame import answer_of, blocks, last_block
from selfplay_gym.gate import CHECKS, Candidate, Gate, GateConfig, Outcome
from selfplay_gym.protocols import ComposingFamily, Executor, ProposingFamily, TaskFamily, TwoRunFamily
from selfplay_gym.referee import ProposalRequest, Referee, RewardConfig, judge_answers
from selfplay_gym.registry import Registry, executors, families, make_family
from selfplay_gym.types import (
    Execution,
    Job,
    Limits,
    Mark,
    NoVerdict,
    Policy,
    Proposal,
    Rejected,
    Role,
    Status,
    Task,
    Tier,
    Triplet,
    Verdict,
)
from selfplay_gym.vector import SelfPlayVectorEnv, SolveVectorEnv

__version__ = "0.1.0"

__all__ = [
    # values
    "Execution",
    "Job",
    "Limits",
    "Mark",
    "NoVerdict",
    "Policy",
    "Proposal",
    "Rejected",
    "Role",
    "Status",
    "Task",
    "Tier",
    "Triplet",
    "Verdict",
    # contracts
    "Executor",
    "ProposingFamily",
    "ComposingFamily",
    "TaskFamily",
    "TwoRunFamily",
    # names
    "Registry",
    "environment_id",
    "executors",
    "families",
    "make_family",
    "register_family",
    # judging
    "CHECKS",
    "Candidate",
    "Gate",
    "GateConfig",
    "Outcome",
    "ProposalRequest",
    "Referee",
    "RewardConfig",
    "judge_answers",
    "rewards",
    # writing families
    "answer_of",
    "blocks",
    "last_block",
    "literals",
    # keeping
    "Archive",
    "Statistics",
    "StoredTask",
    # environments
    "SelfPlayEnv",
    "SelfPlayVectorEnv",
    "SolveEnv",
    "SolveVectorEnv",
    # errors
    "ArchiveError",
    "EndpointError",
    "ExecutorError",
    "InvalidConfig",
    "InvalidData",
    "MissingData",
    "RunFolderError",
    "SelfPlayError",
    "UnknownId",
    "__version__",
]

register_environments()
