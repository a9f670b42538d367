'use strict';
// Loads the native part, a Node-API module, from the package's folder.

const NAME = 'teesql.linux-x64-gnu.node';

function load() {
  const { platform, arch } = process;
  if (platform !== 'linux' || arch !== 'x64') {
    throw new Error(`teesql has no native part for ${platform}-${arch}: it runs on Linux x64 with glibc`);
  }
  try {
    return require(`../${NAME}`);
  } catch (cause) {
    const text = `the native part of teesql, for Linux x64 with glibc 2.28 or later, cannot be loaded: ${cause.message}`;
    throw new Error(text, { cause });
  }
}

module.exports = load();
