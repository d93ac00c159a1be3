// Draws Gaussian splats (rows of 32 bytes, as in .splat files) with WebGL2: one context for every view of the page, one camera for
// all, so that runs side by side turn together. The image model is that of lods_jax/rendering/splat.py.
"use strict";

const WIDE = 1024; // Gaussians in a row of the texture, three texels each
const FOV = Math.PI / 4; // radians, vertical
const HOME = { azimuth: 0.6, elevation: 0.35, distance: 2.1 };
const BACKGROUNDS = [[1, 1, 1], [0.55, 0.55, 0.55], [0, 0, 0]];

const VERTEX = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D;
uniform usampler2D u_splats; uniform mat4 u_view; uniform float u_focal; uniform vec2 u_size;
in uint a_id; out vec2 v_at; out vec4 v_color;
void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  ivec2 place = ivec2(int(a_id % ${WIDE}u) * 3, int(a_id / ${WIDE}u));
  uvec4 head = texelFetch(u_splats, place, 0);
  vec4 a = uintBitsToFloat(texelFetch(u_splats, place + ivec2(1, 0), 0));
  vec4 b = uintBitsToFloat(texelFetch(u_splats, place + ivec2(2, 0), 0));
  vec4 color = vec4((uvec4(head.w) >> uvec4(0u, 8u, 16u, 24u)) & 255u) / 255.0;
  vec3 p = (u_view * vec4(uintBitsToFloat(head.xyz), 1.0)).xyz; // x right, y down, z forward
  if (p.z < 0.01 || color.a < 1.0 / 255.0) return;
  vec2 limit = 1.3 * u_size / (2.0 * u_focal);
  vec2 q = clamp(p.xy / p.z, -limit, limit);
  float f = u_focal / p.z;
  mat3 jacobian = mat3(f, 0.0, 0.0, 0.0, f, 0.0, -f * q.x, -f * q.y, 0.0);
  mat3 t = jacobian * mat3(u_view);
  mat3 c = t * mat3(a.x, a.y, a.z, a.y, a.w, b.x, a.z, b.x, b.y) * transpose(t);
  float xx = c[0][0] + 0.3, xy = c[0][1], yy = c[1][1] + 0.3; // the low-pass filter of 3D Gaussian splatting
  float middle = 0.5 * (xx + yy), half_gap = length(vec2(0.5 * (xx - yy), xy));
  float major = middle + half_gap, minor = max(middle - half_gap, 0.1);
  vec2 axis = abs(xy) > 1e-6 ? normalize(vec2(xy, major - xx)) : xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0);
  float reach = sqrt(2.0 * log(255.0 * color.a)); // where alpha falls below 1/255
  v_at = reach * (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0);
  v_color = color;
  vec2 offset = v_at.x * sqrt(major) * axis + v_at.y * sqrt(minor) * vec2(axis.y, -axis.x);
  gl_Position = vec4((f * p.xy + offset) / (0.5 * u_size) * vec2(1.0, -1.0), 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 v_at; in vec4 v_color; out vec4 o_color;
void main() {
  float alpha = min(0.99, v_color.a * exp(-0.5 * dot(v_at, v_at)));
  if (alpha < 1.0 / 255.0) discard;
  o_color = vec4(v_color.rgb * alpha, alpha);
}`;

function bytesOf(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Rows of 32 bytes -> the texture's words: mean and colour, then the six numbers of the covariance.
function unpack(bytes) {
  const n = bytes.length >> 5, rows = Math.max(1, Math.ceil(n / WIDE));
  const from = new Float32Array(bytes.buffer), colors = new Uint32Array(bytes.buffer);
  const words = new Uint32Array(rows * WIDE * 12), floats = new Float32Array(words.buffer), means = new Float32Array(3 * n);
  for (let i = 0; i < n; i++) {
    const o = 12 * i, s = 8 * i;
    for (let k = 0; k < 3; k++) means[3 * i + k] = floats[o + k] = from[s + k];
    words[o + 3] = colors[s + 6];
    let [w, x, y, z] = [0, 1, 2, 3].map((k) => (bytes[32 * i + 28 + k] - 128) / 128);
    const norm = Math.hypot(w, x, y, z) || 1;
    w /= norm; x /= norm; y /= norm; z /= norm;
    const m = [
      1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
      2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
      2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ].map((value, k) => value * from[s + 3 + (k % 3)]);
    const dot = (a, b) => m[3 * a] * m[3 * b] + m[3 * a + 1] * m[3 * b + 1] + m[3 * a + 2] * m[3 * b + 2];
    floats.set([dot(0, 0), dot(0, 1), dot(0, 2), dot(1, 1), dot(1, 2), dot(2, 2)], o + 4);
  }
  return { n, rows, words, means };
}

// A counting sort, farthest first: order[i] is the i-th Gaussian to draw.
function sortByDepth(scene, forward) {
  const { n, means, order, keys } = scene, buckets = 1 << 14, [fx, fy, fz] = forward;
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < n; i++) {
    const d = (keys[i] = means[3 * i] * fx + means[3 * i + 1] * fy + means[3 * i + 2] * fz);
    if (d < low) low = d;
    if (d > high) high = d;
  }
  const scale = (buckets - 1) / Math.max(high - low, 1e-9), starts = new Uint32Array(buckets + 1);
  for (let i = 0; i < n; i++) starts[(((high - keys[i]) * scale) | 0) + 1]++;
  for (let i = 0; i < buckets; i++) starts[i + 1] += starts[i];
  for (let i = 0; i < n; i++) order[starts[((high - keys[i]) * scale) | 0]++] = i;
}

// The world lies in the file as viewers take it: y down, so z up is -y here and azimuth turns from +x to +z.
function viewMatrix({ azimuth, elevation, distance }) {
  const flat = Math.cos(elevation);
  const out = [flat * Math.cos(azimuth), -Math.sin(elevation), flat * Math.sin(azimuth)];
  const forward = out.map((x) => -x);
  const right = [-Math.sin(azimuth), 0, Math.cos(azimuth)];
  const down = [
    forward[1] * right[2] - forward[2] * right[1],
    forward[2] * right[0] - forward[0] * right[2],
    forward[0] * right[1] - forward[1] * right[0],
  ];
  const rows = [right, down, forward];
  const matrix = new Float32Array(16);
  for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) matrix[4 * j + i] = rows[i][j];
  matrix[14] = distance; // the eye looks at the origin
  matrix[15] = 1;
  return { matrix, forward };
}

function makePainter() {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl2", { antialias: false, alpha: false, preserveDrawingBuffer: true });
  if (!gl) return null;
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const at = Object.fromEntries(["u_view", "u_focal", "u_size"].map((name) => [name, gl.getUniformLocation(program, name)]));

  function load(bytes) {
    const scene = unpack(bytes);
    scene.order = new Uint32Array(scene.n);
    scene.keys = new Float32Array(scene.n);
    scene.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, scene.texture);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32UI, 3 * WIDE, scene.rows, 0, gl.RGBA_INTEGER, gl.UNSIGNED_INT, scene.words);
    scene.buffer = gl.createBuffer();
    delete scene.words;
    return scene;
  }

  function paint(scene, camera, background, size) {
    if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
    const { matrix, forward } = viewMatrix(camera);
    const seen = forward.join();
    gl.bindBuffer(gl.ARRAY_BUFFER, scene.buffer);
    if (scene.seen !== seen) {
      sortByDepth(scene, forward);
      gl.bufferData(gl.ARRAY_BUFFER, scene.order, gl.DYNAMIC_DRAW);
      scene.seen = seen;
    }
    const id = gl.getAttribLocation(program, "a_id");
    gl.enableVertexAttribArray(id);
    gl.vertexAttribIPointer(id, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(id, 1);
    gl.bindTexture(gl.TEXTURE_2D, scene.texture);
    gl.viewport(0, 0, size, size);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniformMatrix4fv(at.u_view, false, matrix);
    gl.uniform1f(at.u_focal, size / 2 / Math.tan(FOV / 2));
    gl.uniform2f(at.u_size, size, size);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, scene.n);
  }
  return { canvas, load, paint };
}

function start() {
  const camera = { ...HOME }, painter = makePainter(), views = [];
  let background = 0, spinning = !matchMedia("(prefers-reduced-motion: reduce)").matches, dirty = true, quality = 1, last = 0;
  let settled = true;

  for (const canvas of document.querySelectorAll("canvas.view")) {
    const view = { canvas, pen: canvas.getContext("2d"), visible: true };
    if (canvas.dataset.splats) {
      if (!painter) {
        canvas.replaceWith(Object.assign(document.createElement("p"), {
          className: "missing", textContent: "This browser has no WebGL2; the video and the stills show the same object.",
        }));
        continue;
      }
      view.scene = painter.load(bytesOf(canvas.dataset.splats));
    } else {
      view.image = new Image();
      view.image.onload = () => (dirty = true);
      view.image.src = "data:image/png;base64," + document.getElementById(canvas.dataset.frames).textContent;
    }
    views.push(view);
    listen(canvas);
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) views.find((view) => view.canvas === entry.target).visible = entry.isIntersecting;
    dirty = true;
  });
  views.forEach((view) => watcher.observe(view.canvas));
  addEventListener("resize", () => (dirty = true));

  function turn(right, up, zoom = 1) {
    spinning = false;
    camera.azimuth -= right;
    camera.elevation = Math.min(1.5, Math.max(-1.5, camera.elevation + up));
    camera.distance = Math.min(8, Math.max(0.6, camera.distance * zoom));
    dirty = true;
    settled = false;
  }

  function listen(canvas) {
    const down = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      down.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!down.has(event.pointerId)) return;
      const before = [...down.values()].map((p) => [...p]), [x, y] = down.get(event.pointerId);
      down.set(event.pointerId, [event.clientX, event.clientY]);
      const unit = 3.2 / canvas.clientWidth;
      if (down.size === 1) return turn((event.clientX - x) * unit, (event.clientY - y) * unit);
      const after = [...down.values()], gap = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
      turn((event.clientX - x) * unit / 2, (event.clientY - y) * unit / 2, gap(before) / gap(after));
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => down.delete(event.pointerId));
    // The wheel zooms where a person has chosen the view; elsewhere it scrolls the page.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      turn(0, 0, Math.exp(Math.max(-0.3, Math.min(0.3, event.deltaY * 1e-3))));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const keys = {
        ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1],
        "+": [0, 0, 0.9], "=": [0, 0, 0.9], "-": [0, 0, 1 / 0.9],
      };
      if (event.key in keys) turn(...keys[event.key]);
      else if (event.key === " ") toggle();
      else if (event.key === "Home") reset();
      else return;
      event.preventDefault();
    });
  }

  function toggle() { spinning = !spinning; dirty = true; settled = false; }
  function reset() { Object.assign(camera, HOME); dirty = true; }
  const act = { spin: toggle, home: reset, background: () => { background = (background + 1) % BACKGROUNDS.length; dirty = true; } };
  for (const button of document.querySelectorAll("button[data-act]")) button.onclick = act[button.dataset.act];

  function draw(view, scale) {
    const { canvas, pen, scene, image } = view;
    const full = Math.round(Math.min(canvas.clientWidth, 720) * Math.min(devicePixelRatio || 1, 2));
    if (full < 1) return;
    if (canvas.width !== full) canvas.width = canvas.height = full;
    if (scene) {
      const size = Math.max(64, Math.round(full * scale));
      painter.paint(scene, camera, BACKGROUNDS[background], size);
      pen.drawImage(painter.canvas, 0, 0, size, size, 0, 0, full, full);
    } else if (image.complete && image.naturalWidth) {
      // Frames of the true object in a row, at equal azimuths from the front: the nearest one is shown.
      const size = image.naturalHeight, n = image.naturalWidth / size, part = camera.azimuth / (2 * Math.PI);
      pen.drawImage(image, (((Math.round(part * n) % n) + n) % n) * size, 0, size, size, 0, 0, full, full);
    }
  }

  function frame(now) {
    const elapsed = now - last;
    last = now;
    if (spinning) camera.azimuth += Math.min(elapsed, 100) * 4e-4;
    const moving = spinning || !settled;
    if (moving && elapsed < 500) quality = Math.min(1, Math.max(0.3, quality * (elapsed > 30 ? 0.93 : elapsed < 20 ? 1.03 : 1)));
    if (dirty || moving) {
      // Coarser while it moves, where a machine is slow; sharp once it rests.
      for (const view of views) if (view.visible) draw(view, dirty || spinning ? quality : 1);
      settled = !dirty && !spinning;
      dirty = false;
      if (!document.body.dataset.firstFrame) document.body.dataset.firstFrame = Math.round(performance.now());
      document.body.dataset.frames = 1 + Number(document.body.dataset.frames || 0);
    }
    requestAnimationFrame(frame);
  }
  requestAnimationFrame(frame);
}

// Videos as blobs: some browsers do not play them from data: addresses.
for (const video of document.querySelectorAll("video[data-from]")) {
  video.src = URL.createObjectURL(new Blob([bytesOf(video.dataset.from)], { type: "video/mp4" }));
}
start();
