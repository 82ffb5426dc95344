"""Every setting of a run, frozen and checked; and configurations as YAML."""

from .es_config import ESConfig
from .run_config import RunConfig

__all__ = ["ESConfig", "RunConfig"]
