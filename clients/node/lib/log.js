'use strict';
// The log of the native part, which concerns all forwarders of the process. Warnings become Node's own
// (process.emitWarning) until the application passes its logger.

const { debuglog } = require('node:util');
const { threadId } = require('node:worker_threads');
const native = require('./native.js');
const { typeError } = require('./arguments.js');

const LEVELS = ['error', 'warn', 'info', 'debug'];
const debug = debuglog('teesql');

/** Warnings that were emitted. Most are about settings, and equal for each forwarder. */
const emitted = new Set();
const MAX_EMITTED = 256;

function warn(text) {
  if (emitted.has(text)) return;
  if (emitted.size < MAX_EMITTED) emitted.add(text);
  process.emitWarning(text, 'TeesqlWarning');
}

function defaultLogger() {
  return debug.enabled
    ? { error: warn, warn, info: (text) => debug('%s', text), debug: (text) => debug('%s', text) }
    : { error: warn, warn };
}

let logger = defaultLogger();

/** Called by the native part. An exception would be an uncaught one. */
function log(level, text) {
  try {
    logger?.[level]?.(text);
  } catch (error) {
    process.emitWarning(`the logger of teesql failed: ${error?.message}`, 'TeesqlWarning');
  }
}

/** The most verbose level that the logger has a method for. */
function level() {
  return LEVELS.findLast((name) => typeof logger?.[name] === 'function');
}

function setLogger(value) {
  if (value !== null && value !== undefined && typeof value !== 'object') {
    throw typeError('logger', 'an object with methods error, warn, info and debug, or null', value);
  }
  logger = value === undefined ? defaultLogger() : value;
  native.setLog(threadId, true, log, level());
}

native.setLog(threadId, false, log, level());

module.exports = { setLogger };
