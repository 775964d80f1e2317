"""What an S3 server or its SDK said, as an error of ours: what it means, in the server's own words, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import botocore.session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    InvalidRegionError,
    InvalidS3AddressingStyleError,
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    RefreshWithMFAUnsupportedError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from urllib3.exceptions import HTTPError

from atlas_dist.errors import (
    AtlasError,
    AuthError,
    ConfigError,
    ExpiredCredentials,
    MissingObject,
    PreconditionFailed,
    StoreError,
    UnknownOutcome,
    Unreachable,
)
from atlas_dist.redact import redact

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_AUTH_CODES = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AuthFailure",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "MissingAuthenticationToken",
        "NotSignedUp",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_NO_CREDENTIALS = (
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
_SETTINGS = (InvalidRegionError, InvalidS3AddressingStyleError, ParamValidationError)
_WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_WORDS = 400
"""Most characters of a server's own words that are passed on."""

SPARE_CHECKSUMS = (
    "Set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and AWS_RESPONSE_CHECKSUM_VALIDATION=when_required in the environment of "
    "every process: this server does not know the checksums that the SDK adds of its own accord."
)
_NO_CONDITIONS = (
    "This server can't do conditional writes (If-None-Match), which the ledger needs: use a newer version of it, another server "
    "or a folder. `atlas-dist doctor` tells more."
)

_RENEW = "The session token has run out: get new credentials, then give the same command again; it goes on from there."
_NO_ROOM = frozenset({"EntityTooLarge", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"})
_ABOUT_CONDITIONS = ("if-none-match", "conditional", "precondition")
_ABOUT_CHECKSUMS = (
    "trailer",
    "checksum",
    "aws-chunked",
    "content-sha256",
    "contentsha256",
    "transfer-encoding",
    "content-encoding",
    "crc32",
)


@dataclass(frozen=True)
class Request:
    """What was asked, for the words of an error. `writes`: its effect may have happened although it failed; `conditional`: it
    asked for a write only where nothing is yet; `where`: the server's address as far as it is known by then, "" = AWS."""

    what: str
    url: str
    bucket: str
    where: Callable[[], str]
    writes: bool = False
    conditional: bool = False

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return self.where()


@contextmanager
def explained(request: Request) -> Iterator[None]:
    """Turn the SDK's exceptions into ours."""
    try:
        yield
    except AtlasError:
        raise
    except ClientError as error:
        raise _from_answer(request, error) from None
    except _NO_CREDENTIALS as error:
        raise _from_credentials(request, error) from None
    except _SETTINGS as error:
        raise ConfigError(f"Cannot {request.what} in {request.url}: {_one_line(error)}", fix=_setting(error)) from None
    except (BotoCoreError, HTTPError, OSError) as error:
        raise _from_transport(request, error) from None
    except Exception as error:
        # s3transfer wraps what the server said; the XML parser raises its own: such an answer has told us nothing.
        if isinstance(error.__context__, ClientError):
            raise _from_answer(request, error.__context__) from None
        kind = UnknownOutcome if request.writes else StoreError
        raise kind(f"Cannot {request.what} in {request.url}: {type(error).__name__}: {_one_line(error)}") from error


def expired(error: BaseException) -> bool:
    """Whether the server said that the credentials have run out; also inside what s3transfer wraps around it."""
    inner = error if isinstance(error, ClientError) else error.__context__
    return isinstance(inner, ClientError) and code_of(inner) in _EXPIRED


def code_of(error: ClientError) -> str:
    """The server's own name for what is wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """HTTP's number."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _from_answer(request: Request, error: ClientError) -> AtlasError:
    code, status = code_of(error), status_of(error)
    said = " ".join(str(error.response.get("Error", {}).get("Message") or "").split())[:_WORDS]
    text = redact(f"Cannot {request.what} in {request.url}: {code} ({status}){f': {said}' if said and said != code else ''}")
    text = text if text.endswith(".") else f"{text}."
    if code == "NoSuchKey" and status == 404:
        return MissingObject(text)
    if code == "NoSuchBucket":
        return StoreError(f"There is no bucket {request.bucket!r}.", fix=f"Create it, or correct the address {request.url}.")
    if code in _EXPIRED:
        return ExpiredCredentials(text, fix=_RENEW)
    if code == "RequestTimeTooSkewed":
        return AuthError(text, fix="The clock of this machine is wrong by more than a server accepts: set it.")
    if code in _WRONG_REGION or status == 301:
        return StoreError(text, fix="Set store.region (shards.region) to the region of the bucket.")
    if _dislikes_checksums(request, code, said):
        return StoreError(text, fix=SPARE_CHECKSUMS)
    if code in _AUTH_CODES or status in (401, 403):
        return AuthError(text, fix="Check the credentials and the bucket policy (cluster/ has a minimal one).")
    if code == "PreconditionFailed" or status == 412:
        return PreconditionFailed(text)
    if code == "NotImplemented" or status == 501:
        return StoreError(text, fix=_NO_CONDITIONS if request.conditional else "This server lacks a request that is needed here.")
    if request.conditional and status == 400 and any(word in said.lower() for word in _ABOUT_CONDITIONS):
        return StoreError(text, fix=_NO_CONDITIONS)
    if code in _NO_ROOM or status == 507:
        return StoreError(text, fix="Make room in the bucket (or raise its quota), then give the same command again.")
    if request.writes and (status >= 500 or status in (0, 200, 408, 409, 429)):
        return UnknownOutcome(text)
    return StoreError(text)


def _dislikes_checksums(request: Request, code: str, said: str) -> bool:
    """Whether a server refuses a write because of the checksum that boto3 1.36 and later put into a header or behind the body."""
    if (
        not request.writes
        or _is_aws(request.endpoint)
        or os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "").lower() == "when_required"
    ):
        return False
    words = f"{code} {said}".lower().replace("_", "-")
    if any(word in words for word in _ABOUT_CHECKSUMS):
        return True
    # Told nothing: of a plain write, that is the one thing which older servers do not know.
    return code in ("NotImplemented", "MissingContentLength") and not request.conditional


def _is_aws(endpoint: str) -> bool:
    return not endpoint or "amazonaws.com" in endpoint


def _from_credentials(request: Request, error: Exception) -> AuthError:
    if isinstance(error, ProfileNotFound):
        there = botocore.session.Session().available_profiles
        listed = f"the profiles there are {', '.join(there)}" if there else "there is no profile in the SDK's configuration files"
        fix = f"Set AWS_PROFILE to one that exists, or unset it; {listed}."
    elif isinstance(error, SSOError | TokenRetrievalError | LoginError):
        fix = "Sign in again (`aws sso login`, `aws login`), then give the same command again."
    elif isinstance(error, ConfigNotFound | ConfigParseError | InvalidConfigError | InfiniteLoopConfigError):
        fix = "Correct the SDK's configuration file (AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE)."
    else:
        fix = "Set AWS credentials (environment, profile or role)."
    return AuthError(f"Cannot {request.what} in {request.url}: {_one_line(error)}", fix=fix)


def _setting(error: Exception) -> str:
    if isinstance(error, InvalidRegionError):
        return "Set store.region (shards.region, AWS_DEFAULT_REGION) to a region such as us-east-1."
    if isinstance(error, InvalidS3AddressingStyleError):
        return "Set s3.addressing_style in the SDK's configuration file to path, virtual or auto."
    return "Correct the address, s3://bucket/prefix."


def _from_transport(request: Request, error: Exception) -> StoreError:
    endpoint = request.endpoint or "AWS"
    text = f"Cannot {request.what} in {request.url}: {type(error).__name__} at {endpoint}: {_one_line(error)}"
    if isinstance(error, FlexibleChecksumError):
        return StoreError(text, fix=SPARE_CHECKSUMS)
    if isinstance(error, SSLError) or "CA certificate bundle" in str(error):
        return Unreachable(text, fix="Set AWS_CA_BUNDLE to the file of the authority that signed the server's certificate.")
    if isinstance(error, ProxyConnectionError):
        return Unreachable(text, fix="Correct HTTPS_PROXY and HTTP_PROXY, or name the server in NO_PROXY.")
    lost = isinstance(error, EndpointConnectionError | ConnectTimeoutError)
    fix = f"Is the network up, and is {endpoint} the right endpoint_url?" if lost else ""
    if request.writes:
        return UnknownOutcome(text, fix=fix)
    return Unreachable(text, fix=fix) if lost else StoreError(text)


def _one_line(error: Exception) -> str:
    text = redact(" ".join(str(error).split()))[:_WORDS]
    return text if text.endswith(".") else f"{text}."
