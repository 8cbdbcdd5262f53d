"""Exceptions that Riprap raises on purpose."""


class RiprapError(Exception):
    """Base class of all errors that Riprap raises on purpose; the text is one sentence."""


class ConfigError(RiprapError):
    """An unusable configuration: an unknown key, a missing file, nothing to monitor."""


class MissingExtraError(ConfigError, ImportError):
    """An optional dependency that is not installed; the text names the extra that installs it."""


class BehaviorError(RiprapError):
    """A behavior whose probes or margins are unusable."""


class RecordError(RiprapError):
    """A record that cannot be opened, read or written."""


class PolicyError(RiprapError):
    """An alert policy that is malformed, or whose hash does not verify."""
