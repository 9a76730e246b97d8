# One static library per instruction set, so that only that file gets its flags.
{
  "target_defaults": {
    "cflags_cc": ["-std=c++17", "-O3", "-fno-exceptions", "-ffp-contract=off", "-Wno-unused-function"],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20"],
    "defines": ["NAPI_VERSION=8"]
  },
  "targets": [
    { "target_name": "kernels_generic", "type": "static_library", "sources": ["native/isa/generic.cc"] },
    {
      "target_name": "kernels_avx2", "type": "static_library", "sources": ["native/isa/avx2.cc"],
      "conditions": [["target_arch=='x64'", { "cflags_cc": ["-mavx2", "-mfma", "-mf16c"] }]]
    },
    {
      "target_name": "kernels_avx512vnni", "type": "static_library", "sources": ["native/isa/avx512vnni.cc"],
      "conditions": [["target_arch=='x64'", {
        "cflags_cc": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c", "-mprefer-vector-width=512",
                      "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
      }]]
    },
    {
      "target_name": "eaglet",
      "sources": ["native/addon.cc", "native/dispatch.cc", "native/threads.cc", "native/pack.cc"],
      "dependencies": ["kernels_generic", "kernels_avx2", "kernels_avx512vnni"]
    }
  ]
}
