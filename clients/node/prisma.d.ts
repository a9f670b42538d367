/// <reference types="node" />
/**
 * The names of the package `prisma-ra-tls` 0.3, over the forwarder of this package.
 *
 * Different from it: a quote that does not belong to the key of the server's certificate is always refused, and so are an
 * MRTD that `allowedMrTd` does not name and a TD in debug mode, with every verifier; forwarders can be stopped; a driver
 * gets an error with the reason where its connection was closed.
 *
 * @packageDocumentation
 */

import type { PrismaPg } from '@prisma/adapter-pg';
import type { TeesqlError } from './index.js';

export interface VerifyOptions {
  /** Allowed values of MRTD, in hex, with `0x` or without. If it is empty, every MRTD is allowed. */
  allowedMrTd?: string[];
  /** Accepts TDs in debug mode, whose memory the host can read. Default: false. */
  allowDebugMode?: boolean;
}

export interface VerificationResult {
  mrTd: string;
  rtmr0: string;
  rtmr1: string;
  rtmr2: string;
  rtmr3: string;
  tcbStatus: string;
  isDebugMode: boolean;
}

/** Decides whether a quote is genuine. What it throws is the reason of a refusal. */
export interface RaTlsVerifier {
  verify(quote: Buffer, options: VerifyOptions): Promise<VerificationResult>;
}

export interface RaTlsOptions extends VerifyOptions {
  verifier: RaTlsVerifier;
  /** Accepts servers without any evidence. Default: false. */
  allowSimulator?: boolean;
  /** Presents a certificate of the guest agent to the server. Default: false. */
  clientAttestation?: boolean;
  /** The guest agent's socket. Default: `/var/run/dstack.sock`; DSTACK_SIMULATOR_ENDPOINT takes precedence. */
  dstackSocket?: string;
  /** How long a certificate that was verified is not verified again, in ms, at least 600,000. Default: 3,600,000. */
  cacheTtlMs?: number;
  /** Prisma's schema. */
  schema?: string;
}

/** An adapter for Prisma whose connections are attested. */
export function withRaTls(connectionString: string, options: RaTlsOptions): Promise<PrismaPg>;

export interface OpenForwarderOptions {
  verifier: RaTlsVerifier;
  verifyOptions?: VerifyOptions;
  /** Accepts servers without any evidence. Default: false. */
  allowSimulator?: boolean;
  /** The guest agent's socket. Default: `/var/run/dstack.sock`; DSTACK_SIMULATOR_ENDPOINT takes precedence. */
  dstackSocket?: string;
}

export interface ConnectViaManifestOptions extends OpenForwarderOptions {
  /** Prisma's schema, for {@link withRaTlsManifest}. */
  schema?: string;
}

export interface ManifestConnection {
  /** The connection URL for a driver. */
  dsn: string;
  manifest: Manifest;
  forwarder: RaTlsForwarder;
}

/** Looks up the leader of a cluster, and starts a forwarder to it. */
export function connectViaManifest(
  clusterDomain: string,
  dsnTemplate: string,
  manifestSigner: Uint8Array,
  options: ConnectViaManifestOptions,
): Promise<ManifestConnection>;

/** @deprecated Use {@link connectViaManifest}. */
export function withRaTlsManifest(
  clusterDomain: string,
  dsnTemplate: string,
  manifestSigner: Uint8Array,
  options: ConnectViaManifestOptions,
): Promise<PrismaPg>;

export function resolveLeader(clusterDomain: string, manifestSigner: Uint8Array): Promise<Manifest>;

/** Starts a forwarder with a certificate of the guest agent. */
export function openLocalForwarder(
  targetHost: string,
  targetPort: number,
  options: OpenForwarderOptions,
): Promise<RaTlsForwarder>;

/** A connection URL with another server and `sslmode=disable`, without parameters that name a server or TLS. */
export function rewriteDsnToForwarder(dsn: string, localHost: string, localPort: number): string;

export interface RaTlsForwarderOptions {
  targetHost: string;
  targetPort: number;
  clientCertChainPem: string;
  clientKeyPem: string;
  verifier: RaTlsVerifier;
  verifyOptions?: VerifyOptions;
  /** Accepts servers without any evidence. Default: false. */
  allowSimulator?: boolean;
}

export class RaTlsForwarder {
  constructor(options: RaTlsForwarderOptions);
  start(): Promise<{ host: string; port: number }>;
  readonly localAddr: { host: string; port: number };
  stop(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export function registerForwarder(forwarder: RaTlsForwarder): void;
export function registeredForwarders(): RaTlsForwarder[];

export const MANIFEST_VERSION: '1';

export interface Manifest {
  cluster: string;
  leaderInstance: string;
  leaderUrl: string;
  epoch: number;
  /** Unix seconds. */
  validUntil: number;
}

export class ManifestError extends TeesqlError {}
export function canonicalBody(manifest: Manifest): string;
export function parseAndVerify(txt: string, expectedSigner: Uint8Array, opts?: { now?: number }): Manifest;
export function buildRecordName(clusterDomain: string): string;
export function postgresHostFromLeaderUrl(url: string): { host: string; port: number };
export function queryManifestTxt(recordName: string): Promise<string>;

export interface IntelApiVerifierOptions {
  /** Default: INTEL_TRUST_AUTHORITY_API_KEY. */
  apiKey?: string;
  /** Default: `'us'`. */
  region?: 'us' | 'eu';
  baseUrl?: string;
}

/** Has quotes verified by Intel Trust Authority. */
export class IntelApiVerifier implements RaTlsVerifier {
  constructor(options?: IntelApiVerifierOptions);
  verify(quote: Buffer, options?: VerifyOptions): Promise<VerificationResult>;
}

/** Accepts every quote: connections are open to man-in-the-middle attacks. For development only. */
export class NoopVerifier implements RaTlsVerifier {
  verify(quote: Buffer, options?: VerifyOptions): Promise<VerificationResult>;
}

/** The TDX quote in a certificate in DER; null if there is none. Nothing is verified. */
export function extractTdxQuote(derCert: Buffer): Buffer | null;
