'use strict';
// The verifiers of prisma-ra-tls.
//
// Intel Trust Authority's token is checked as docs/how-to/use-trust-authority.md says: its key comes from Intel's own host,
// and its claims are those of the quote that was sent. prisma-ra-tls itself fetches the key from wherever the token says.

const { constants, createPublicKey, verify: verifySignature } = require('node:crypto');
const check = require('../arguments.js');
const { readQuote } = require('../verify.js');

/** Marks errors that are no verdict about the quote, such as an expired API key. */
const NO_VERDICT = Symbol('no verdict');

const BASES = {
  us: { api: 'https://api.trustauthority.intel.com', keys: 'https://portal.trustauthority.intel.com' },
  eu: { api: 'https://api.eu.trustauthority.intel.com', keys: 'https://portal.eu.trustauthority.intel.com' },
};
const ACCEPTED_TCB_STATUS = ['UpToDate', 'SWHardeningNeeded'];
const ALGORITHMS = {
  PS384: { hash: 'sha384', padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 48 },
  RS256: { hash: 'sha256', padding: constants.RSA_PKCS1_PADDING },
};
const DEADLINE = 10_000;
const MAX_RESPONSE = 256 * 1024;
/** How far `nbf` and `iat` may be in the future, in seconds. */
const CLOCK_SKEW = 60;
const MIN_KEY_BITS = 2048;

const noVerdict = (message, options) => Object.assign(new Error(message, options), { [NO_VERDICT]: true });

/** The body of a response as text, within its cap. */
async function textOf(response) {
  let text = '';
  const decoder = new TextDecoder();
  try {
    for await (const chunk of response.body ?? []) {
      text += decoder.decode(chunk, { stream: true });
      if (text.length > MAX_RESPONSE) break;
    }
  } catch (cause) {
    throw noVerdict("Intel Trust Authority's response ended early", { cause });
  }
  if (text.length > MAX_RESPONSE) throw noVerdict('Intel Trust Authority response is too large');
  return text + decoder.decode();
}

function json(text, what) {
  try {
    const value = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return value;
  } catch {
    // Below.
  }
  throw noVerdict(`Intel Trust Authority: ${what} is malformed`);
}

/** The parts of a JSON Web Token, nothing verified. */
function split(token) {
  const parts = typeof token === 'string' ? token.split('.') : [];
  if (parts.length !== 3) throw noVerdict('Intel Trust Authority: the attestation token is malformed');
  const decode = (part) => json(Buffer.from(part, 'base64url').toString(), 'the attestation token');
  return {
    header: decode(parts[0]),
    claims: decode(parts[1]),
    signed: Buffer.from(`${parts[0]}.${parts[1]}`),
    signature: Buffer.from(parts[2], 'base64url'),
  };
}

const hex = (value) => (typeof value === 'string' ? value : '').toLowerCase().replace(/^0x/, '');

class IntelApiVerifier {
  #apiKey;
  #baseUrl;
  #keyOrigins;

  constructor({ apiKey = process.env.INTEL_TRUST_AUTHORITY_API_KEY, region = 'us', baseUrl } = {}) {
    if (!apiKey) {
      throw new Error(
        'Intel Trust Authority API key required. Pass { apiKey } option or set INTEL_TRUST_AUTHORITY_API_KEY env var. ' +
          'Register at https://portal.trustauthority.intel.com',
      );
    }
    const { api, keys } = BASES[region] ?? BASES.us;
    this.#apiKey = check.string('apiKey', apiKey).trim();
    // An error of `fetch` about a header quotes its value.
    if (!/^[\x20-\x7e]+$/.test(this.#apiKey)) throw check.valueError('apiKey', 'of printable ASCII characters');
    this.#baseUrl = (baseUrl ?? api).replace(/\/+$/, '');
    this.#keyOrigins = baseUrl === undefined ? [new URL(api).origin, keys] : [new URL(baseUrl).origin];
  }

  async verify(quote, options = {}) {
    const signal = AbortSignal.timeout(DEADLINE);
    const { header, claims, signed, signature } = split(await this.#requestToken(quote, signal));
    const algorithm = Object.hasOwn(ALGORITHMS, header.alg) ? ALGORITHMS[header.alg] : undefined;
    if (!algorithm) throw noVerdict('The attestation token is not signed with PS384 or RS256');
    const key = await this.#key(header, signal);
    if (!verifySignature(algorithm.hash, signed, { key, ...algorithm }, signature)) {
      throw noVerdict("The attestation token's signature does not verify");
    }
    checkDates(claims);
    return result(claims.tdx ?? claims, quote, options);
  }

  async #fetch(url, init, signal) {
    try {
      // A redirect could lead to another host's keys.
      return await fetch(url, { ...init, redirect: 'error', signal });
    } catch (cause) {
      throw noVerdict('no connection to Intel Trust Authority', { cause });
    }
  }

  async #requestToken(quote, signal) {
    const response = await this.#fetch(
      `${this.#baseUrl}/appraisal/v2/attest`,
      {
        method: 'POST',
        headers: { 'x-api-key': this.#apiKey, 'Content-Type': 'application/json', Accept: 'application/json' },
        body: JSON.stringify({ quote: Buffer.from(quote).toString('base64'), token_signing_alg: 'PS384' }),
      },
      signal,
    );
    const body = await textOf(response);
    if (!response.ok) {
      const error = new Error(`Intel Trust Authority returned ${response.status}: ${body}`);
      // 400 is about the quote.
      throw response.status === 400 ? error : Object.assign(error, { [NO_VERDICT]: true });
    }
    const { token } = json(body, 'the response');
    if (!token) throw noVerdict('Intel Trust Authority response missing token field');
    return token;
  }

  /** The key that a token is signed with, from Trust Authority's own host. */
  async #key({ jku, kid }, signal) {
    if (typeof jku !== 'string') throw noVerdict('Attestation token missing jku header');
    if (typeof kid !== 'string') throw noVerdict('Attestation token missing kid header');
    if (!URL.canParse(jku) || !this.#keyOrigins.includes(new URL(jku).origin)) {
      throw noVerdict("The attestation token's jku is not on Intel Trust Authority's host");
    }
    const response = await this.#fetch(jku, {}, signal);
    const { keys } = json(await textOf(response), 'the key set');
    const jwk = Array.isArray(keys) ? keys.find((key) => key?.kid === kid && key.kty === 'RSA') : undefined;
    if (!jwk) throw noVerdict("The attestation token's key is not one of Intel Trust Authority's");
    const key = publicKey(jwk);
    if (!(key.asymmetricKeyDetails.modulusLength >= MIN_KEY_BITS)) {
      throw noVerdict("The attestation token's key is too short");
    }
    return key;
  }
}

function publicKey({ kty, n, e }) {
  try {
    return createPublicKey({ key: { kty, n, e }, format: 'jwk' });
  } catch (cause) {
    throw noVerdict("The attestation token's key is malformed", { cause });
  }
}

function checkDates({ exp, nbf, iat }) {
  const now = Date.now() / 1000;
  if (!(typeof exp === 'number' && now < exp)) throw noVerdict('The attestation token has expired');
  for (const begin of [nbf, iat]) {
    if (begin !== undefined && !(begin <= now + CLOCK_SKEW)) throw noVerdict('The attestation token is not valid yet');
  }
}

/** The result, if the claims are those of the quote and nothing is to be refused. */
function result(claims, quote, { allowedMrTd = [], allowDebugMode = false }) {
  const own = readQuote(quote);
  const measured = {
    tdx_mrtd: own.mrtd,
    tdx_rtmr0: own.rtmr[0],
    tdx_rtmr1: own.rtmr[1],
    tdx_rtmr2: own.rtmr[2],
    tdx_rtmr3: own.rtmr[3],
    tdx_report_data: own.reportData,
  };
  for (const [name, value] of Object.entries(measured)) {
    if (hex(claims[name]) !== value) throw new Error(`The attestation token's ${name} is not the quote's`);
  }
  const isDebugMode = own.isDebug || claims.tdx_is_debuggable === true || claims.tdx_td_attributes_debug === true;
  if (isDebugMode && !allowDebugMode) {
    throw new Error(
      'TDX TD is in debug mode — connection refused. Debug TDs have no confidentiality guarantees. ' +
        'Set allowDebugMode: true to override (not recommended for production).',
    );
  }
  const tcbStatus = typeof claims.attester_tcb_status === 'string' ? claims.attester_tcb_status : 'Unknown';
  const isAccepted = ACCEPTED_TCB_STATUS.includes(tcbStatus === 'OK' ? 'UpToDate' : tcbStatus);
  if (!isAccepted) {
    throw new Error(
      `Unacceptable TCB status: "${tcbStatus}". Acceptable statuses: ${ACCEPTED_TCB_STATUS.join(', ')}. ` +
        "Update the platform firmware/microcode or check Intel's advisory.",
    );
  }
  if (allowedMrTd.length > 0 && !allowedMrTd.map(hex).includes(own.mrtd)) {
    throw new Error(
      `MRTD "${own.mrtd}" is not in the allowlist. Update allowedMrTd if you intentionally upgraded the CVM image.`,
    );
  }
  const [rtmr0, rtmr1, rtmr2, rtmr3] = own.rtmr;
  return { mrTd: own.mrtd, rtmr0, rtmr1, rtmr2, rtmr3, tcbStatus, isDebugMode };
}

class NoopVerifier {
  async verify() {
    const zeros = '0'.repeat(96);
    return {
      mrTd: zeros,
      rtmr0: zeros,
      rtmr1: zeros,
      rtmr2: zeros,
      rtmr3: zeros,
      tcbStatus: 'UpToDate',
      isDebugMode: false,
    };
  }
}

module.exports = { IntelApiVerifier, NO_VERDICT, NoopVerifier };
