// An Intel Trust Authority on loopback, which believes every quote. Its status, its answer and parts of its tokens can be
// changed.
import { constants, createSign, generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';

import { readQuote } from 'teesql';

export const API_KEY = 'bW9jaw==';

function claimsOf(quote) {
  const { mrtd, rtmr, reportData } = readQuote(quote);
  return {
    attester_tcb_status: 'UpToDate',
    tdx_mrtd: mrtd,
    ...Object.fromEntries(rtmr.map((value, index) => [`tdx_rtmr${index}`, value])),
    tdx_report_data: reportData,
    tdx_is_debuggable: false,
    tdx_td_attributes_debug: false,
  };
}

export async function trustAuthority(t) {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const now = Math.floor(Date.now() / 1000);
  const state = { status: 200, answer: null, requests: [], header: {}, claims: {}, tdx: {} };
  const token = (quote) => {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const header = { alg: 'PS384', kid: 'k1', jku: `${state.url}/certs`, typ: 'JWT', ...state.header };
    const tdx = { ...claimsOf(quote), ...state.tdx };
    // Both forms of the claims: at the top and under `tdx`.
    const claims = { exp: now + 300, nbf: now, iat: now, ...tdx, tdx, ...state.claims };
    const signed = `${part(header)}.${part(claims)}`;
    const padding = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 48 };
    const signature = createSign('sha384').update(signed).sign({ key: privateKey, ...padding });
    return `${signed}.${signature.toString('base64url')}`;
  };
  const server = createServer((request, response) => {
    if (request.url === '/certs') {
      response.end(JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k1', use: 'sig', alg: 'PS384' }] }));
      return;
    }
    let text = '';
    request.on('data', (data) => (text += data)).on('end', () => {
      const body = JSON.parse(text);
      state.requests.push({ url: request.url, key: request.headers['x-api-key'], body });
      const isAuthorized = request.headers['x-api-key'] === API_KEY;
      response.statusCode = isAuthorized ? state.status : 401;
      response.end(state.answer ?? (isAuthorized ? JSON.stringify({ token: token(Buffer.from(body.quote, 'base64')) }) : 'Unauthorized'));
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  state.url = `http://127.0.0.1:${server.address().port}`;
  return state;
}
