// Draws Gaussian splats (rows of 32 bytes, as in .splat files) with WebGL2: one context for every view of the page, one camera for
// all, so that runs side by side turn together. The image model is that of lods_jax/scenes/gaussian_rasterizer.py.
"use strict";

const FOV = Math.PI / 4; // radians, vertical
const HOME = { azimuth: 0.6, elevation: 0.35, distance: 2.1 };
const BACKGROUNDS = [[1, 1, 1], [0.55, 0.55, 0.55], [0, 0, 0]];

const VERTEX = `#version 300 es
precision highp float; precision highp int;
uniform float u_least; in vec2 a_place; in vec4 a_color; out vec2 v_at; out vec4 v_color;
void main() {
  int corner = gl_VertexID % 3; // of a triangle whose incircle is the ellipse where alpha falls below u_least / 255
  vec2 unit = corner == 0 ? vec2(0.0, 2.0) : vec2(corner == 1 ? -1.7320508 : 1.7320508, -1.0);
  v_at = sqrt(2.0 * log(255.0 * a_color.a / u_least)) * unit;
  v_color = a_color;
  gl_Position = vec4(a_place, 0.0, 1.0);
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

// Rows of 32 bytes -> n Gaussians: means [n 3], covariances [n 6] (xx xy xz yy yz zz), colours and opacity as one word.
function unpack(bytes) {
  const n = bytes.length >> 5, from = new Float32Array(bytes.buffer), words = new Uint32Array(bytes.buffer);
  const scene = { n, means: new Float32Array(3 * n), covariances: new Float32Array(6 * n), colors: new Uint32Array(n) };
  for (let i = 0; i < n; i++) {
    scene.means.set(from.subarray(8 * i, 8 * i + 3), 3 * i);
    scene.colors[i] = words[8 * i + 6];
    let [w, x, y, z] = [0, 1, 2, 3].map((k) => (bytes[32 * i + 28 + k] - 128) / 128);
    const norm = Math.hypot(w, x, y, z) || 1;
    w /= norm; x /= norm; y /= norm; z /= norm;
    const m = [
      1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
      2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
      2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ].map((value, k) => value * from[8 * i + 3 + (k % 3)]);
    const dot = (a, b) => m[3 * a] * m[3 * b] + m[3 * a + 1] * m[3 * b + 1] + m[3 * a + 2] * m[3 * b + 2];
    scene.covariances.set([dot(0, 0), dot(0, 1), dot(0, 2), dot(1, 1), dot(1, 2), dot(2, 2)], 6 * i);
  }
  scene.order = new Uint32Array(n);
  scene.keys = new Float32Array(n);
  scene.vertices = new Float32Array(9 * n); // x, y and the colour's word, three times a Gaussian
  return scene;
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

// Gaussians -> triangles in clip space, farthest first; returns how many. Here and not in the vertex shader, which would do it three
// times and fetch its numbers from textures: on a software renderer that is most of a frame.
function project(scene, m, size, least) {
  const { n, order, means, covariances: c, colors, vertices } = scene, words = new Uint32Array(vertices.buffer);
  const focal = size / 2 / Math.tan(FOV / 2), limit = 1.3 * Math.tan(FOV / 2), unit = 2 / size, wide = Math.sqrt(3);
  let k = 0;
  for (let j = 0; j < n; j++) {
    const i = order[j], X = means[3 * i], Y = means[3 * i + 1], Z = means[3 * i + 2], alpha = colors[i] >>> 24;
    const x = m[0] * X + m[4] * Y + m[8] * Z, y = m[1] * X + m[5] * Y + m[9] * Z;
    const z = m[2] * X + m[6] * Y + m[10] * Z + m[14]; // x right, y down, z forward
    if (z < 0.01 || alpha <= least) continue;
    const f = focal / z, qx = Math.max(-limit, Math.min(limit, x / z)), qy = Math.max(-limit, Math.min(limit, y / z));
    // Rows of the projection's Jacobian, and the covariance between them, with the low-pass filter of 3D Gaussian splatting.
    const ux = f * (m[0] - qx * m[2]), uy = f * (m[4] - qx * m[6]), uz = f * (m[8] - qx * m[10]);
    const vx = f * (m[1] - qy * m[2]), vy = f * (m[5] - qy * m[6]), vz = f * (m[9] - qy * m[10]);
    const o = 6 * i, a = c[o] * ux + c[o + 1] * uy + c[o + 2] * uz;
    const b = c[o + 1] * ux + c[o + 3] * uy + c[o + 4] * uz, d = c[o + 2] * ux + c[o + 4] * uy + c[o + 5] * uz;
    const xx = ux * a + uy * b + uz * d + 0.3, xy = vx * a + vy * b + vz * d;
    const yy = 0.3 + vx * (c[o] * vx + 2 * (c[o + 1] * vy + c[o + 2] * vz)) + vy * (c[o + 3] * vy + 2 * c[o + 4] * vz) + c[o + 5] * vz * vz;
    const middle = 0.5 * (xx + yy), gap = Math.hypot(0.5 * (xx - yy), xy), major = middle + gap;
    let px = xy, py = major - xx;
    if (Math.abs(xy) < 1e-6) [px, py] = xx >= yy ? [1, 0] : [0, 1];
    const reach = unit * Math.sqrt(2 * Math.log(alpha / least)) / Math.hypot(px, py);
    const r = reach * Math.sqrt(major), s = reach * Math.sqrt(Math.max(middle - gap, 0.1));
    const cx = unit * f * x, cy = -unit * f * y; // clip space has y up
    const ax = r * px, ay = -r * py, bx = s * py, by = s * px; // the axes of the ellipse
    vertices[k] = cx + 2 * bx; vertices[k + 1] = cy + 2 * by; words[k + 2] = colors[i];
    vertices[k + 3] = cx - wide * ax - bx; vertices[k + 4] = cy - wide * ay - by; words[k + 5] = colors[i];
    vertices[k + 6] = cx + wide * ax - bx; vertices[k + 7] = cy + wide * ay - by; words[k + 8] = colors[i];
    k += 9;
  }
  return k / 9;
}

function makePainter() {
  const canvas = window.OffscreenCanvas && new OffscreenCanvas(1, 1);
  const gl = canvas && canvas.getContext("webgl2", { antialias: false, alpha: false });
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
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  const [place, color] = ["a_place", "a_color"].map((name) => gl.getAttribLocation(program, name));
  gl.enableVertexAttribArray(place);
  gl.enableVertexAttribArray(color);
  gl.vertexAttribPointer(place, 2, gl.FLOAT, false, 12, 0);
  gl.vertexAttribPointer(color, 4, gl.UNSIGNED_BYTE, true, 12, 8);

  const uniform = gl.getUniformLocation(program, "u_least");

  return function paint(scene, camera, background, size, least) {
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const { matrix, forward } = viewMatrix(camera);
    sortByDepth(scene, forward);
    const n = project(scene, matrix, size, least);
    gl.bufferData(gl.ARRAY_BUFFER, scene.vertices.subarray(0, 9 * n), gl.STREAM_DRAW);
    gl.uniform1f(uniform, least);
    gl.viewport(0, 0, size, size);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.drawArrays(gl.TRIANGLES, 0, 3 * n);
    return canvas.transferToImageBitmap();
  };
}

function start() {
  const camera = { ...HOME }, paint = makePainter(), views = [];
  let background = 0, spinning = !matchMedia("(prefers-reduced-motion: reduce)").matches, dirty = true, quality = 1, last = 0;
  let settled = true;

  for (const canvas of document.querySelectorAll("canvas.view")) {
    const view = { canvas, visible: true };
    if (canvas.dataset.splats) {
      if (!paint) {
        canvas.replaceWith(Object.assign(document.createElement("p"), {
          className: "missing", textContent: "This browser has no WebGL2; the video and the stills show the same object.",
        }));
        continue;
      }
      view.pen = canvas.getContext("bitmaprenderer");
      view.scene = unpack(bytesOf(canvas.dataset.splats));
    } else {
      view.pen = canvas.getContext("2d");
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

  function draw({ canvas, pen, scene, image }, scale) {
    const full = Math.round(Math.min(canvas.clientWidth, 720) * Math.min(devicePixelRatio || 1, 2));
    if (full < 1) return;
    if (scene) {
      const size = Math.max(64, Math.round(full * scale));
      pen.transferFromImageBitmap(paint(scene, camera, BACKGROUNDS[background], size, scale < 1 ? 8 : 1));
    } else if (image.complete && image.naturalWidth) {
      // Frames of the true object in a row, at equal azimuths from the front: the nearest one is shown.
      const size = image.naturalHeight, n = image.naturalWidth / size, part = camera.azimuth / (2 * Math.PI);
      canvas.width = canvas.height = size;
      pen.drawImage(image, (((Math.round(part * n) % n) + n) % n) * size, 0, size, size, 0, 0, size, size);
    }
  }

  function frame(now) {
    const elapsed = now - last;
    last = now;
    if (spinning) camera.azimuth += Math.min(elapsed, 100) * 4e-4;
    const moving = spinning || !settled;
    if (moving && elapsed < 500) quality = Math.min(1, Math.max(0.25, quality * (elapsed > 30 ? 0.93 : elapsed < 20 ? 1.03 : 1)));
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
