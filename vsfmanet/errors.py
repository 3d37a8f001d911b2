"""What can go wrong, by cause. Every message reads `what is needed, got X; what to do`; the border adds the caller."""


class VsfmanetError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1
    """Exit status of the command line when this error ends it."""


class ConfigError(VsfmanetError):
    """An option or a combination of options makes no sense."""

    exit_code = 2


class FormatError(VsfmanetError):
    """A clip's format, size or structure cannot be taken."""

    exit_code = 3


class ShapeError(VsfmanetError):
    """A tensor does not have the shape that the contract names."""


class ExposureError(VsfmanetError):
    """An exposure that was given cannot be used."""

    exit_code = 2


class SourceError(VsfmanetError):
    """A source file is missing, unreadable or not a video."""

    exit_code = 3


class DamagedError(SourceError):
    """A source file is a video, but not all of it is there."""


class DeviceError(VsfmanetError):
    """The device is missing, unusable or out of memory."""

    exit_code = 4


class OutputError(VsfmanetError):
    """The output cannot be written: disk, permission, encoder or muxer."""

    exit_code = 5


class IncompleteError(VsfmanetError):
    """A result has fewer frames than its source, or failed verification."""

    exit_code = 6


class BusyError(VsfmanetError):
    """Another run owns the job, the journal or the output."""

    exit_code = 7


class WeightsError(VsfmanetError):
    """Weights are missing, damaged, refused or of another architecture."""

    exit_code = 8
