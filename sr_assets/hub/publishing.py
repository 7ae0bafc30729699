"""Publishing a release on a hub: one commit with all of its files, then a tag.

A commit without its tag is no release yet; who publishes again goes on from there. Fetching is
`pulling.py`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sr_assets.hub.repository import (
    AbsentError,
    Entry,
    Refs,
    Repository,
    UnreachableError,
)
from sr_assets.lineage.stage import StageError
from sr_assets.releases import place
from sr_assets.sources.hub_answers import silent_client
from sr_assets.storage import hash_file, is_local
from sr_assets.stores.registry import Release
from sr_assets.stores.release_manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    Manifest,
    parse_manifest,
)


@dataclass(frozen=True)
class Plan:
    """What publishing would do; nothing of it is done yet."""

    release: Release
    repository: Repository
    todo: Literal["create", "commit", "tag", "nothing"]
    """`create`: repository, commit and tag; `tag`: the commit is there already."""
    private: bool
    """Of a repository that is created."""
    commit: str | None
    """Parent of the commit, or the commit that is tagged; None before there is a repository."""
    deleted: tuple[str, ...] = ()
    """Files of the release before that are not in this one."""

    @property
    def tag(self) -> str:
        """Such as `v1.2.0`."""
        return self.release.manifest.number.tag

    @property
    def title(self) -> str:
        """First line of the commit, by which it is found again."""
        return f"{self.release.manifest.model} {self.tag}"

    def lines(self) -> list[str]:
        """The plan for people: files with sizes, then what is done with them."""
        name, shown = self.repository.name, (self.commit or "")[:12]
        if self.todo == "nothing":
            return [f"{name}@{self.tag} is published already: commit {shown}"]
        if self.todo == "tag":
            return [f"commit {shown} of {name} holds these files already: tag {self.tag}"]
        manifest = self.release.manifest
        width = max(len(file) for file in (MANIFEST, *manifest.files))
        lines = [f"  {file:{width}}  {e.size:>12,} B" for file, e in manifest.files.items()]
        lines.append(f"  {MANIFEST:{width}}")
        lines += [f"  {file:{width}}  deleted" for file in self.deleted]
        total = sum(entry.size for entry in manifest.files.values())
        made = f"create {'private' if self.private else 'public'} repository {name}; "
        return [
            *lines,
            f"licence {manifest.licence or 'not stated'}; made from {_made_from(manifest)}",
            f"{made if self.todo == 'create' else ''}commit {self.title!r} to {name}: "
            f"{len(manifest.files) + 1} files, {total / 1e6:.1f} MB; tag {self.tag}",
        ]


def plan_publishing(release: Release, repository: Repository, *, private: bool = False) -> Plan:
    """What is to be done so that the repository has this release; only asks.

    Args:
        release: of the registry.
        repository: where it is to go.
        private: that it must not be seen; a repository that is public already is refused.

    Raises:
        StageError: the tag is there with other files, a higher version is published, the repository
            is public or of another model, or the hub refuses or cannot be reached.
    """
    with silent_client(), _reached(repository):
        try:
            refs = repository.refs()
        except AbsentError:
            return Plan(release, repository, "create", private, None)
        if private and not refs.private:
            raise StageError(f"{repository.page} exists and is public: make it private there first")
        return _plan_into(release, repository, refs)


def carry_out(plan: Plan, tell: Callable[[str], None]) -> str:
    """Does what the plan says; returns the commit that the tag names.

    A kill at any time leaves the repository as it was, or with the commit and no tag: a new plan
    goes on from there. What was uploaded is not uploaded again.

    Raises:
        StageError: a file is not what was released, somebody else has committed since the plan was
            made, or the hub refuses or cannot be reached.
    """
    repository, commit = plan.repository, plan.commit
    with silent_client(), _reached(repository):
        if plan.todo == "nothing":
            assert commit is not None
            return commit
        if plan.todo == "create":
            repository.ask(
                lambda: repository.api().create_repo(
                    repository.name, private=plan.private, exist_ok=True
                ),
                writes=True,
            )
            commit = repository.refs().head
        if plan.todo != "tag":
            tell(f"uploading {len(plan.release.manifest.files) + 1} files to {repository.name}")
            commit = _commit(plan, commit)
            tell(f"commit {commit[:12]}")
        repository.ask(
            lambda: repository.api().create_tag(repository.name, tag=plan.tag, revision=commit),
            writes=True,
        )
        assert commit is not None
        return commit


def _made_from(manifest: Manifest) -> str:
    """Data, experts and teachers with their licences: whether they fit is for people to judge."""
    named = {name: text for group in manifest.licences.values() for name, text in group.items()}
    shown = [f"{name} ({text or 'not stated'})" for name, text in named.items()]
    return ", ".join(shown) or "what its manifest does not tell"


def _plan_into(release: Release, repository: Repository, refs: Refs) -> Plan:
    """The plan for a repository that is there."""
    manifest, number = release.manifest, release.manifest.number
    plan = Plan(release, repository, "commit", refs.private, refs.head)
    before = _manifest_at(repository, refs.head)
    if before is not None and before.model != manifest.model:
        raise StageError(
            f"{repository.page} holds releases of {before.model}: name another repository for "
            f"{manifest.model}"
        )
    if number in refs.tags:
        commit = refs.tags[number]
        wrong = _difference(release, repository.listing(commit))
        if wrong:
            raise StageError(
                f"{repository.name}@{number.tag} is published with another {wrong}, and a tag "
                "never moves: release a new version"
            )
        return Plan(release, repository, "nothing", refs.private, commit)
    for commit, title in repository.commits():
        if title == plan.title and not _difference(release, repository.listing(commit)):
            return Plan(release, repository, "tag", refs.private, commit)
    newest = max(refs.tags, default=number)
    if newest > number:
        raise StageError(
            f"{repository.name} has {newest.tag}: {manifest.name} would move it backwards; publish "
            "it to another repository"
        )
    old = () if before is None else before.files
    there = repository.listing(refs.head)
    deleted = tuple(file for file in old if file not in manifest.files and file in there)
    return Plan(release, repository, "commit", refs.private, refs.head, deleted)


def _difference(release: Release, listing: dict[str, Entry]) -> str:
    """The first file of the release that the commit has otherwise; empty where it has all."""
    files = {MANIFEST: None, **release.manifest.files}
    for file, entry in files.items():
        there = listing.get(file)
        if there is None:
            return file
        # Large ones are listed with their sha256, which spares reading them.
        if entry is not None and there.sha256:
            if not there.holds(entry.size, entry.sha256):
                return file
        elif not there.is_of((release.path / file).read_bytes()):
            return file
    return ""


def _manifest_at(repository: Repository, commit: str) -> Manifest | None:
    """The manifest of the release that a commit holds; None where it holds none."""
    entry = repository.listing(commit).get(MANIFEST)
    if entry is None or entry.size > LARGEST_MANIFEST:
        return None
    path = repository.fetch(commit, MANIFEST)
    return parse_manifest(path.read_bytes(), f"{repository.page}/{MANIFEST}")


def _commit(plan: Plan, parent: str | None) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repository = plan.repository
    with _checked(plan.release) as folder:
        adds = [
            CommitOperationAdd(file, str(folder / file))
            for file in (*plan.release.manifest.files, MANIFEST)
        ]
        made = repository.ask(
            lambda: repository.api().create_commit(
                repository.name,
                [*adds, *(CommitOperationDelete(file) for file in plan.deleted)],
                commit_message=plan.title,
                parent_commit=parent,
            ),
            writes=True,
        )
    return str(made.oid)


@contextlib.contextmanager
def _checked(release: Release) -> Iterator[Path]:
    """A local folder with the release's files, each of which has the digest that it must have."""
    if not is_local(release.path):
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder) / "release"
            manifest = (release.path / MANIFEST).read_bytes()
            place(release.manifest, manifest, lambda file: release.path / file, to)
            yield to
        return
    folder_here = Path(str(release.path))
    for file, entry in release.manifest.files.items():
        path = folder_here / file
        if not path.is_file() or hash_file(path) != entry.sha256:
            raise StageError(f"{path} is not what was released: this release is damaged")
    yield folder_here


@contextlib.contextmanager
def _reached(repository: Repository) -> Iterator[None]:
    """A hub that does not answer, and a repository that vanished, become one line."""
    if repository.offline:
        raise StageError("HF_HUB_OFFLINE is set: publishing needs the hub")
    try:
        yield
    except UnreachableError as error:
        raise StageError(
            f"the hub at {repository.endpoint} cannot be reached ({error}): publish again later, "
            "it goes on where it ended"
        ) from None
    except AbsentError:
        raise StageError(
            f"the hub shows no {repository.name}: set HF_TOKEN to a token with write access to it"
        ) from None
