"""All problems of one configuration at once."""

from __future__ import annotations

from collections.abc import Sequence

from opentsm.errors import ConfigError, OpenTsmError


class ConfigErrors(ConfigError):
    """Everything that is wrong with a configuration, in the order of the file.

    Its own ``message``, ``line`` and ``hint`` are those of the first problem; ``problems`` has all.
    """

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        super().__init__(first.message, source=first.source, line=first.line, hint=first.hint)
        self.args = ("\n".join(str(problem) for problem in self.problems),)


class Problems:
    """Collects problems of one source while a file is read, so that all are reported together."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: list[ConfigError] = []

    def add(self, message: str, *, line: int | None = None, hint: str = "") -> None:
        self._found.append(ConfigError(message, source=self.source, line=line, hint=hint))

    def add_error(self, error: OpenTsmError | ValueError, *, line: int | None = None) -> None:
        """A refusal in the words of whoever refused."""
        self.add(str(error), line=line)

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raise ``ConfigErrors`` if there is any problem."""
        if self._found:
            raise ConfigErrors(sorted(self._found, key=lambda problem: problem.line or 0))
