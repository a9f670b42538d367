/// <reference types="node" />
/**
 * Connect to a TeeSQL database from any PostgreSQL driver, through an attested connection.
 *
 * A {@link Forwarder} listens on this machine and forwards each connection over mutual RA-TLS to a TeeSQL sidecar, but
 * only after that has proved by its TDX quote which code it runs. The driver behind it needs no TLS: it gets a DSN.
 *
 * @packageDocumentation
 */

/**
 * Starts a forwarder, and resolves when drivers can connect.
 *
 * @param url A connection URL, `postgresql://role:secret@host:port/database`. It names the server, unless `target` or
 *   `cluster` does, and the rest is for {@link Forwarder.dsn}. Several hosts are tried in turn. If it is absent, and `env`
 *   is true, it is `DATABASE_URL`.
 * @throws {TeesqlError} of the kind `configuration` (with all mistakes in `messages`), `identity` without a client
 *   certificate, or `system`.
 * @throws {TypeError} for an option that does not exist or has the wrong type.
 */
export function forward(url?: string | URL | null, options?: ForwardOptions): Promise<Forwarder>;

/** Options of {@link forward}. All times are in milliseconds. */
export interface ForwardOptions {
  /**
   * Whether to read the settings in the environment, `TEESQL_…` and `DATABASE_URL`, and those of the TOML file in
   * `TEESQL_CONFIG`. Options take precedence. Default: false.
   */
  env?: boolean;
  /** The server, `host:port`. Several are tried in turn. */
  target?: string | readonly string[];
  /** The leader of a cluster, which the manifest at `_teesql-leader.<domain>` names. */
  cluster?: {
    domain: string;
    /** The address of the key that signs the manifests: `0x` and 40 hex digits, or 20 bytes. */
    signer: string | Uint8Array;
  };
  /** The certificate that is presented to the server. Default: `'guest-agent'`. */
  identity?: Identity;
  /** What servers have to prove. It must say which application the server is. */
  policy?: Policy;
  /**
   * A further decision about servers that are genuine, bound to their key and allowed by the policy: it can only refuse.
   * It is asked for each connection.
   */
  verifier?: Verifier;
  /**
   * Decides whether quotes are genuine, instead of their verification by Intel's collateral (DCAP). The binding of the quote
   * to the server's key, the event log and the policy are checked all the same, with the TCB status that the verifier
   * reports. Its acceptance holds for up to 10 minutes.
   *
   * A verifier that accepts everything makes the connection open to man-in-the-middle attacks.
   */
  dangerousVerifierInsteadOfDcap?: Verifier;
  /** How long the verifier may take for one decision. The connection is then refused. Default: 10,000. */
  verifierTimeout?: number;
  /** The limit for each connection attempt, and again for the TLS handshake. */
  connectTimeout?: number;
  /** The limit for the first client certificate. */
  startTimeout?: number;
  /** How long {@link Forwarder.close} lets sessions finish. Default: 2,000. */
  drainTimeout?: number;
  /**
   * Any setting of `teesql-forward`, by its name in the configuration file: `{ pccs: 'phala' }`. `log`, `log_format` and
   * `admin_listen` have no effect.
   */
  settings?: Settings;
  /** Gives up when it is aborted before the forwarder has started. */
  signal?: AbortSignal;
}

/** Settings by their name in the configuration file. Lists may be arrays. */
export type Settings = Readonly<Record<string, string | number | boolean | readonly string[]>>;

/**
 * A running forwarder. Drivers connect to it without TLS.
 *
 * It does not keep the process alive, and ends with it. It runs until it is closed, also if no reference to it is left.
 */
export class Forwarder {
  private constructor();
  /**
   * The connection URL for a driver: that of {@link forward} with this forwarder as its server and without TLS. It may
   * contain a secret.
   * @throws {TeesqlError} of the kind `stopped` after {@link close}.
   */
  readonly dsn: string;
  /** Where it listens, as in `PGHOST`. Of a Unix socket it is the directory. */
  readonly host: string;
  /** The port, as in `PGPORT`. */
  readonly port: number;
  /** Whether {@link close} has ended. */
  readonly closed: boolean;
  /**
   * Another connection URL with this forwarder as its server. The server in `url` is ignored: it names role, secret,
   * database and parameters.
   * @throws {TeesqlError} of the kind `configuration` if `url` is not a connection URL, or has a parameter that would lead
   *   a driver around the forwarder.
   */
  rewrite(url: string | URL): string;
  /**
   * The newest connection that was refused or ended by an error; null if there was none.
   *
   * It is recorded before the driver learns of it: after a driver's error this is its cause, unless another connection
   * failed at the same time.
   */
  readonly lastFailure: ConnectionFailure | null;
  /** The failures after the one with this number, oldest first; with 0, all that are kept, which are the newest 32. */
  failuresAfter(sequence: number): ConnectionFailure[];
  /**
   * Stops accepting connections, lets sessions finish for `drainTimeout`, then terminates them. When it resolves, no
   * thread, socket or file of this forwarder is left.
   */
  close(): Promise<void>;
  /** Ends the sessions that {@link close} waits for. Does not wait. */
  terminate(): void;
  /** As {@link close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * The certificate that is presented to servers: from dstack's guest agent of this machine, renewed in time; from the guest
 * agent at this address (a path, or `http://host:port`); the chain, leaf first, and the leaf's key in PEM; PEM files, read
 * again when they change; or none, for sidecars that accept clients that are not attested.
 */
export type Identity =
  | 'guest-agent'
  | 'none'
  | { guestAgent: string }
  | { certificate: string | Uint8Array; key: string | Uint8Array }
  | { certificateFile: string | URL; keyFile: string | URL };

/** What a server has to prove. What is left out is not compared. All values are in hex. */
export interface Policy {
  /** A policy file. It replaces the values below. */
  file?: string | URL;
  /** 96 hex digits, as are the RTMRs. */
  mrtd?: string | readonly string[];
  rtmr0?: string | readonly string[];
  rtmr1?: string | readonly string[];
  rtmr2?: string | readonly string[];
  rtmr3?: string | readonly string[];
  /** 40 hex digits. */
  appId?: string | readonly string[];
  /** 64 hex digits. */
  composeHash?: string | readonly string[];
  /** 40 hex digits. */
  instanceId?: string | readonly string[];
  /** 64 hex digits. */
  osImageHash?: string | readonly string[];
  /** TCB statuses that are accepted besides `UpToDate`. */
  acceptTcbStatus?: string | readonly string[];
  /** Accepts TDs in debug mode, whose memory the host can read. */
  allowDebugTd?: boolean;
  /** Accepts a policy that does not say which application the server is: any TD can then receive the secrets. */
  allowAnyServer?: boolean;
  /** Accepts servers without any evidence, such as a simulator. Open to man-in-the-middle attacks. */
  allowSimulator?: boolean;
  /** Any setting of the group "Attestation", such as `{ kms_root: 'ca.pem', pccs: 'phala' }`. */
  settings?: Settings;
}

/**
 * An application's own decision about a server, after the quote was found to belong to the key of its certificate.
 *
 * `true` or an {@link Acceptance} accepts. `false` or an exception of the class {@link Refusal} refuses, with the code
 * `verifier_refused`. Anything else, `undefined` included, refuses with `verifier_failed`, and no answer in time with
 * `verifier_timeout`.
 */
export type Verifier = VerifierFunction | { verify: VerifierFunction };
export type VerifierFunction = (
  evidence: Evidence,
  context: { /** Aborted at the deadline. */ signal: AbortSignal },
) => boolean | Acceptance | PromiseLike<boolean | Acceptance>;

/** A verifier's consent. */
export interface Acceptance {
  /**
   * The TCB status that a verifier instead of DCAP found, in Intel's spelling, which the policy then accepts or not;
   * `UpToDate` if it is absent. Other verifiers leave it out.
   */
  tcbStatus?: string;
}

/** What a server presents: certificates, and a quote that is bound to the key of the first. */
export interface Evidence {
  quote: Buffer;
  /**
   * The certificates in DER, leaf first. Node's `X509Certificate` reads from DER the first PEM inside, which is a certificate
   * of Intel's in the quote: make PEM of it for that class.
   */
  chain: Buffer[];
  /** Of a verifier instead of DCAP they are not verified yet, and there is no TCB status. */
  claims: Claims;
}

/** What a TDX quote, and an event log if there is one, say. All values are in lower-case hex. */
export interface Claims {
  mrtd: string;
  rtmr: [string, string, string, string];
  reportData: string;
  isDebug: boolean;
  /** In Intel's spelling; null if the quote's signatures were not verified. */
  tcbStatus: string | null;
  /** Intel's advisories that the platform is subject to. */
  advisories: string[];
  /** Null unless the event log proves one. The same holds for all that follow. */
  appId: string | null;
  composeHash: string | null;
  instanceId: string | null;
  osImageHash: string | null;
}

/** The result of a verification that found nothing to refuse. */
export interface Verified {
  claims: Claims;
  quote: Buffer;
  /** The certificates in DER, leaf first. Empty for a bare quote, which proves nothing about who sent it. */
  chain: Buffer[];
  /** SHA-256 of the leaf certificate in hex; empty for a bare quote. */
  fingerprint: string;
  /** The last moment at which the result holds. */
  validUntil: Date;
}

export interface VerifyOptions {
  /** Whether to read the policy in the environment, `TEESQL_ALLOWED_…` and so on. Default: false. */
  env?: boolean;
  policy?: Policy;
}

/**
 * Verifies a bare quote: Intel's signatures, the TCB, and of the policy what a quote can show (MRTD and RTMRs). Who sent
 * it remains open.
 * @throws {TeesqlError} of the kind `refused`, `unavailable` without collateral, or `configuration`.
 */
export function verify(quote: Uint8Array, options?: VerifyOptions): Promise<Verified>;

/**
 * Verifies a certificate chain, leaf first, DER or PEM: the binding, and all that {@link verify} and the policy require.
 * @throws {TeesqlError} as {@link verify}.
 */
export function verifyCertificate(
  chain: string | Uint8Array | readonly (string | Uint8Array)[],
  options?: VerifyOptions,
): Promise<Verified>;

/**
 * Connects to a server, verifies it as a forwarder does, and closes the connection without a login.
 * @throws {TeesqlError} as {@link verify}; of the kind `network` or `timeout`.
 */
export function verifyServer(host: string, port: number, options?: VerifyServerOptions): Promise<Verified>;

/** Options of {@link verifyServer}. All times are in milliseconds. */
export interface VerifyServerOptions extends VerifyOptions {
  /** The certificate to present if the server requests one. Default: `'none'`. */
  identity?: Identity;
  /** The limit from the guest agent's certificate, if that is the identity, to the end of the TLS handshake. Default: 5,000. */
  timeout?: number;
  /** As that of {@link ForwardOptions}. */
  verifier?: Verifier;
  /** As that of {@link ForwardOptions}. */
  dangerousVerifierInsteadOfDcap?: Verifier;
  /** As that of {@link ForwardOptions}. */
  verifierTimeout?: number;
}

/** The TDX quote in a certificate in DER; null if there is none. Nothing is verified. */
export function extractTdxQuote(certificate: Uint8Array): Buffer | null;

/**
 * What a quote says, without verifying it.
 * @throws {TeesqlError} of the kind `refused` if it is not a TDX quote.
 */
export function readQuote(quote: Uint8Array): Claims;

/** `SHA-512("ratls-cert:" || SubjectPublicKeyInfo)`: the report data of a quote that is bound to this key, in DER. */
export function expectedReportData(publicKey: Uint8Array): Buffer;

/**
 * Requests a client certificate from the guest agent, at dstack's standard addresses or at `guestAgent`.
 * @throws {TeesqlError} of the kind `identity`.
 */
export function requestClientCertificate(options?: {
  guestAgent?: string | URL;
  /** In milliseconds. Default: 60,000. */
  timeout?: number;
}): Promise<ClientCertificate>;

/** A client certificate with its key. */
export interface ClientCertificate {
  /** The chain, leaf first, in PEM. */
  chainPem: string;
  /** The private key in PEM. A secret. */
  keyPem: string;
}

/**
 * Queries `_teesql-leader.<domain>`, and returns the valid manifest with the highest epoch.
 * @throws {TeesqlError} of the kind `manifest`, `network` if the name server does not answer, or `timeout`.
 */
export function resolveLeader(
  domain: string,
  signer: string | Uint8Array,
  options?: LeaderOptions,
): Promise<Manifest>;

/** Options of {@link resolveLeader}. */
export interface LeaderOptions {
  /** The name server to ask: an IP address, with a port or without. Default: those of this machine. */
  dnsServer?: string;
  /** The limit for all queries, in milliseconds. Default: 5,000. */
  timeout?: number;
  /** The cluster's address, `0x…`, that the manifest must name. */
  cluster?: string;
}

/**
 * Verifies the text of a manifest.
 * @throws {TeesqlError} of the kind `manifest`.
 */
export function parseManifest(
  text: string,
  signer: string | Uint8Array,
  options?: { /** Default: the present. */ now?: Date },
): Manifest;

/** A leader manifest whose signature was verified. */
export interface Manifest {
  /** The cluster's address, `0x…`. */
  cluster: string;
  leaderInstance: string;
  leaderUrl: string;
  /** The host to connect to. */
  host: string;
  port: number;
  /** Grows with each change of leader. */
  epoch: bigint;
  /** The first second at which it is invalid. */
  validUntil: Date;
  /** The text that the signature is over. */
  canonicalBody: string;
}

/** An error of this package. Its text contains no secret. */
export class TeesqlError extends Error {
  constructor(
    message: string,
    details: { kind: ErrorKind; code: string; messages?: readonly string[]; cause?: unknown },
  );
  readonly name: string;
  readonly kind: ErrorKind;
  /** The reason code, one of {@link reasonCodes}: `mrtd_not_allowed`. */
  readonly code: string;
  /** For the kind `configuration`, each mistake; otherwise the one text. */
  readonly messages: readonly string[];
}

/**
 * - `configuration`: a setting, a connection URL or an argument is wrong.
 * - `identity`: no client certificate: no guest agent, or it refuses, or PEM cannot be used.
 * - `refused`: the server's evidence, the policy, or a verifier's decision.
 * - `manifest`: the leader manifest is missing or refused.
 * - `unavailable`: something that is needed for a verdict: collateral, Trust Authority, a verifier that failed.
 * - `network`: a name cannot be resolved, a server cannot be reached, or TLS failed.
 * - `timeout`: a deadline passed.
 * - `overloaded`: a limit is reached: connections, lookups, verifications.
 * - `stopped`: the forwarder was closed.
 * - `forked`: the process has forked since the forwarder was started.
 * - `system`: the operating system, or a bug.
 */
export type ErrorKind =
  | 'configuration'
  | 'identity'
  | 'refused'
  | 'manifest'
  | 'unavailable'
  | 'network'
  | 'timeout'
  | 'overloaded'
  | 'stopped'
  | 'forked'
  | 'system';

/** A connection that a forwarder refused, or a session that it ended by an error. */
export class ConnectionFailure extends TeesqlError {
  private constructor();
  /** Grows by one with each failure of a forwarder, from 1. */
  readonly sequence: number;
  /** The SQLSTATE that the driver receives; null if it receives no error. */
  readonly sqlstate: string | null;
  /** Whether a session had been established. */
  readonly inSession: boolean;
  /** The address of the driver's socket, `host:port`; null of a Unix socket. */
  readonly client: string | null;
  /** When it happened. */
  readonly at: Date;
}

/**
 * What a {@link Verifier} throws to refuse a server. The message reaches the driver and the log, with control characters
 * escaped and cut to 200 characters.
 */
export class Refusal extends Error {}

/**
 * Where the log goes, which concerns all forwarders of the process: to the methods of `logger`, of which absent ones mean
 * that their level is not wanted; nowhere with null; with undefined, as at first, warnings and errors to
 * `process.emitWarning`, each text once, and with `NODE_DEBUG=teesql` everything else to stderr.
 */
export function setLogger(logger: Logger | null | undefined): void;

/** Most loggers are one, `console` included. */
export interface Logger {
  error?(text: string): void;
  warn?(text: string): void;
  info?(text: string): void;
  debug?(text: string): void;
}

/** Every code that {@link TeesqlError.code} can have. */
export const reasonCodes: readonly string[];
