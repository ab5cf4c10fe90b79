// The part of cuBLAS that a network needs, by plain loops over column-major matrices on the host. build.py adds a stub for
// each further function that CuPy's module names; it returns CUBLAS_STATUS_NOT_SUPPORTED.
#include <library_types.h>
#include <algorithm>
#include <functional>
#include <initializer_list>
#include "device.h"

// Of cuBLAS's own header: its package has 400 MB.
enum cublasStatus_t {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUBLAS_OP_C = 2 };
enum cublasPointerMode_t { CUBLAS_POINTER_MODE_HOST = 0, CUBLAS_POINTER_MODE_DEVICE = 1 };
typedef int cublasMath_t, cublasComputeType_t, cublasGemmAlgo_t;

struct cublasContext {
    void* stream = nullptr;
    cublasPointerMode_t pointers = CUBLAS_POINTER_MODE_HOST;
    cublasMath_t math = 0;
    int device = emulated_device();
};
typedef cublasContext* cublasHandle_t;

namespace {
// alpha or beta: a number known now, or a place on the device that is read when the product runs.
template <class T> struct Scalar {
    T number = 0;
    const T* place = nullptr;
    Scalar(cublasHandle_t handle, const void* p) {
        if (handle->pointers == CUBLAS_POINTER_MODE_DEVICE) place = (const T*)p;
        else number = *(const T*)p;
    }
    T value() const { return place ? *place : number; }
};

template <class T> struct Matrix {
    const T* data;
    long leading;     // elements from one column to the next
    bool transposed;
};

// c = alpha * a @ b + beta * c; c is m x n, and k is the length of the sums. c is not read if beta is 0.
template <class T> void multiply(int m, int n, int k, T alpha, Matrix<T> a, Matrix<T> b, T beta, T* c, long leading) {
    std::vector<T> column(m);
    for (int j = 0; j < n; ++j) {
        auto of_b = [&](int l) { return b.transposed ? b.data[j + l * b.leading] : b.data[l + j * b.leading]; };
        std::fill(column.begin(), column.end(), T(0));
        if (a.transposed) {
            for (int i = 0; i < m; ++i) {
                const T* row = a.data + i * a.leading;
                T sum = 0;
                for (int l = 0; l < k; ++l) sum += row[l] * of_b(l);
                column[i] = sum;
            }
        } else {
            for (int l = 0; l < k; ++l) {
                const T* source = a.data + l * a.leading;
                T factor = of_b(l);
                for (int i = 0; i < m; ++i) column[i] += source[i] * factor;
            }
        }
        T* out = c + j * leading;
        for (int i = 0; i < m; ++i) out[i] = beta == T(0) ? alpha * column[i] : alpha * column[i] + beta * out[i];
    }
}

// `arrays` are the operands and the result, or where their addresses lie.
cublasStatus_t put(cublasHandle_t handle, const std::string& name, std::initializer_list<const void*> arrays,
                   const std::function<void()>& product) {
    if (handle->device != emulated_device()) return CUBLAS_STATUS_EXECUTION_FAILED;
    for (const void* array : arrays) {
        int owner = emulated_device_of(array);  // -1 for an array without elements
        if (owner >= 0 && owner != handle->device) return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    auto work = new std::function<void()>(product);
    int error = emulated_enqueue(
        handle->stream, ("CUBLAS " + name).c_str(),
        [](void* data) {
            (*(std::function<void()>*)data)();
            return 0;
        },
        work, [](void* data) { delete (std::function<void()>*)data; });
    if (error == cudaErrorMemoryAllocation) return CUBLAS_STATUS_ALLOC_FAILED;
    return error ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

// The sizes of a product and how its operands are stored.
struct Product {
    cublasOperation_t op_a, op_b;
    int m, n, k;
    long lda, ldb, ldc;
    std::string sizes() const { return " " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k); }
};

template <class T> void run(const Product& p, T alpha, const T* a, const T* b, T beta, T* c) {
    multiply<T>(p.m, p.n, p.k, alpha, {a, p.lda, p.op_a != CUBLAS_OP_N}, {b, p.ldb, p.op_b != CUBLAS_OP_N}, beta, c, p.ldc);
}

// `count` products of matrices that lie at equal distances in memory.
template <class T>
cublasStatus_t strided(cublasHandle_t handle, const char* name, const Product& p, const void* alpha, const void* a,
                       long long step_a, const void* b, long long step_b, const void* beta, void* c, long long step_c,
                       int count) {
    Scalar<T> scale(handle, alpha), keep(handle, beta);
    return put(handle, name + p.sizes(), {a, b, c}, [=]() {
        for (int i = 0; i < count; ++i)
            run<T>(p, scale.value(), (const T*)a + i * step_a, (const T*)b + i * step_b, keep.value(), (T*)c + i * step_c);
    });
}

// `count` products of matrices whose addresses lie in arrays on the device.
template <class T>
cublasStatus_t batched(cublasHandle_t handle, const char* name, const Product& p, const T* alpha, const T* const* a,
                       const T* const* b, const T* beta, T* const* c, int count) {
    Scalar<T> scale(handle, alpha), keep(handle, beta);
    return put(handle, name + p.sizes(), {a, b, c}, [=]() {
        for (int i = 0; i < count; ++i) run<T>(p, scale.value(), a[i], b[i], keep.value(), c[i]);
    });
}

// y = alpha * op(a) @ x + beta * y, where a is m x n.
template <class T>
cublasStatus_t vector_product(cublasHandle_t handle, const char* name, cublasOperation_t op, int m, int n, const T* alpha,
                              const T* a, int lda, const T* x, int step_x, const T* beta, T* y, int step_y) {
    if (step_x != 1 || step_y != 1) return CUBLAS_STATUS_NOT_SUPPORTED;
    int rows = op == CUBLAS_OP_N ? m : n, length = op == CUBLAS_OP_N ? n : m;
    return strided<T>(handle, name, {op, CUBLAS_OP_N, rows, 1, length, lda, length, rows}, alpha, a, 0, x, 0, beta, y, 0, 1);
}
}  // namespace

extern "C" {
cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
    *handle = new cublasContext;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion_v2(cublasHandle_t, int* version) {
    *version = 130000;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetStream_v2(cublasHandle_t handle, cudaStream_t* stream) {
    *stream = (cudaStream_t)handle->stream;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void*, size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
    handle->pointers = mode;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t* mode) {
    *mode = handle->pointers;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    handle->math = mode;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t* mode) {
    *mode = handle->math;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                          int k, const void* alpha, const void* a, cudaDataType type_a, int lda,
                                          long long step_a, const void* b, cudaDataType type_b, int ldb, long long step_b,
                                          const void* beta, void* c, cudaDataType type_c, int ldc, long long step_c,
                                          int count, cublasComputeType_t, cublasGemmAlgo_t) {
    Product p{op_a, op_b, m, n, k, lda, ldb, ldc};
    if (type_a != type_b || type_a != type_c) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (type_a == CUDA_R_32F)
        return strided<float>(handle, "gemm float32", p, alpha, a, step_a, b, step_b, beta, c, step_c, count);
    if (type_a == CUDA_R_64F)
        return strided<double>(handle, "gemm float64", p, alpha, a, step_a, b, step_b, beta, c, step_c, count);
    return CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType type_a, int lda, const void* b,
                            cudaDataType type_b, int ldb, const void* beta, void* c, cudaDataType type_c, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                                      type_c, ldc, 0, 1, compute, algorithm);
}

// The same three functions for each of the two types.
#define FUNCTIONS_OF(letter, type) \
    cublasStatus_t cublas##letter##gemm_v2(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, \
                                           int n, int k, const type* alpha, const type* a, int lda, const type* b, \
                                           int ldb, const type* beta, type* c, int ldc) { \
        return strided<type>(handle, #letter "gemm", {op_a, op_b, m, n, k, lda, ldb, ldc}, alpha, a, 0, b, 0, beta, c, 0, 1); \
    } \
    cublasStatus_t cublas##letter##gemv_v2(cublasHandle_t handle, cublasOperation_t op, int m, int n, const type* alpha, \
                                           const type* a, int lda, const type* x, int step_x, const type* beta, type* y, \
                                           int step_y) { \
        return vector_product<type>(handle, #letter "gemv", op, m, n, alpha, a, lda, x, step_x, beta, y, step_y); \
    } \
    cublasStatus_t cublas##letter##gemmBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, \
                                               int n, int k, const type* alpha, const type* const* a, int lda, \
                                               const type* const* b, int ldb, const type* beta, type* const* c, int ldc, \
                                               int count) { \
        return batched<type>(handle, #letter "gemmBatched", {op_a, op_b, m, n, k, lda, ldb, ldc}, alpha, a, b, beta, c, count); \
    }
FUNCTIONS_OF(S, float)
FUNCTIONS_OF(D, double)
}
