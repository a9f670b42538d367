//! Lets the symbols of Node.js be resolved when the module is loaded, and keeps it loaded: threads of the process run its
//! code when a worker that has loaded it ends.

fn main() {
    napi_build::setup();
}
